//! Text by characters: what the next character is, told from those before it.
//!
//! Which characters are told apart does not depend on the text, so that devices with different
//! texts train one model: line feed and printable ASCII, or the alphabet that `dataset.toml`
//! gives; all others are one more class. Source: Karpathy 2015, "The Unreasonable Effectiveness
//! of Recurrent Neural Networks", for the task.

use std::collections::BTreeMap;

use super::files::Source;
use super::options::{self, Options};
use super::{DatasetError, Examples, Limits, Values, gunzip};

/// Characters before the one that is told, when `dataset.toml` does not say.
const CONTEXT: usize = 16;
/// Characters that can be told apart, the class of all others left out.
const ALPHABET_MAX: usize = 255;
/// The name of the class of all other characters.
const OTHER: &str = "\u{fffd}";

/// A text as examples.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) train: Examples,
    pub(super) test: Examples,
    pub(super) class_names: Vec<String>,
}

/// Whether a file name says training (true) or test (false) text.
pub(super) fn is_train(name: &str) -> Option<bool> {
    match gunzip::plain(name) {
        "train.txt" | "input.txt" => Some(true),
        "test.txt" => Some(false),
        _ => None,
    }
}

/// Windows of the text files; without a test file the last part of the text is for testing.
pub(super) fn decode(
    source: Source<'_>,
    options: &Options,
    test_fraction: f64,
    limits: Limits,
) -> Result<Text, DatasetError> {
    let context = options.context.unwrap_or(CONTEXT);
    let alphabet = Alphabet::new(options.alphabet.as_deref())?;
    let mut texts = [Vec::new(), Vec::new()];
    for name in source.names() {
        let Some(train) = is_train(name) else { continue };
        let bytes = source.content(name)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| DatasetError::file(*name, "expected UTF-8 text"))?;
        texts[usize::from(!train)].extend(text.chars().map(|character| alphabet.index(character)));
    }
    let [mut train, mut test] = texts;
    limits.check((train.len() + test.len()).saturating_mul(context + size_of::<u32>()))?;
    if test.is_empty() {
        test = train.split_off(train.len() - part_of(train.len(), test_fraction));
    }
    let windows = |symbols: &[u8]| windows(symbols, context, alphabet.names.len());
    let (train, test) = (windows(&train), windows(&test));
    Ok(Text { train, test, class_names: alphabet.names })
}

/// A share of a count.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share below 1 of a small count is a small count"
)]
pub(super) fn part_of(count: usize, share: f64) -> usize {
    (count as f64 * share).round() as usize
}

/// Every place with `context` symbols before it.
fn windows(symbols: &[u8], context: usize, classes: usize) -> Examples {
    let count = symbols.len().saturating_sub(context);
    let mut values = Vec::with_capacity(count * context);
    for window in symbols.windows(context).take(count) {
        values.extend_from_slice(window);
    }
    let labels = symbols.iter().skip(context).map(|symbol| u32::from(*symbol)).collect();
    Examples { shape: [1, context, classes], values: Values::Symbols(values), labels }
}

/// The characters that are told apart.
struct Alphabet {
    index: BTreeMap<char, u8>,
    /// With the class of all others, which is the last.
    names: Vec<String>,
}

impl Alphabet {
    fn new(given: Option<&str>) -> Result<Self, DatasetError> {
        let characters: Vec<char> = match given {
            Some(given) => given.chars().collect(),
            None => std::iter::once('\n').chain(' '..='~').collect(),
        };
        let count = characters.len();
        let index: BTreeMap<char, u8> = characters.iter().copied().zip(0..=u8::MAX).collect();
        if index.len() != count || count == 0 || count > ALPHABET_MAX {
            let problem = format!(
                "alphabet has {count} characters, {} of them different: expected 1 to \
                 {ALPHABET_MAX}, each once",
                index.len()
            );
            return Err(DatasetError::file(options::FILE, problem));
        }
        let names = characters.iter().map(char::to_string).chain([OTHER.to_owned()]).collect();
        Ok(Self { index, names })
    }

    fn index(&self, character: char) -> u8 {
        let other = u8::try_from(self.index.len()).unwrap_or(u8::MAX);
        self.index.get(&character).copied().unwrap_or(other)
    }
}
