//! Folders of pictures, one folder for each class, as torchvision's `ImageFolder` reads them.
//!
//! `train/<class>/...` and `test/<class>/...` (or `val/<class>/...`), or `<class>/...` alone. A
//! class folder may have folders of its own. Classes are counted in alphabetical order, unless
//! `labels.txt` gives their names. Pictures are decoded once and kept as bytes.

use std::collections::BTreeSet;

use super::files::Source;
use super::options::Options;
use super::{DatasetError, Examples, Limits, TEST_FRACTION, drawn_for_test};
use crate::picture;

/// What a folder of pictures gave.
#[derive(Debug)]
pub(super) struct Pictures {
    pub(super) train: Examples,
    pub(super) test: Examples,
    pub(super) class_names: Vec<String>,
}

/// A picture's place.
struct Entry<'a> {
    path: &'a str,
    class: &'a str,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

/// Whether a path is that of a picture in a folder.
pub(super) fn is_picture(path: &str) -> bool {
    let Some((folder, name)) = path.rsplit_once('/') else { return false };
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    !folder.is_empty() && matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// Decodes every picture.
pub(super) fn decode(
    source: Source<'_>,
    options: &Options,
    given: &[String],
    limits: Limits,
) -> Result<Pictures, DatasetError> {
    let mut entries = entries(source)?;
    if !entries.iter().any(|entry| entry.part == Part::Test) {
        let fraction = options.test_fraction.unwrap_or(TEST_FRACTION);
        let is_test = drawn_for_test(entries.len(), fraction, options.seed);
        for (entry, is_test) in entries.iter_mut().zip(is_test) {
            entry.part = if is_test { Part::Test } else { Part::Train };
        }
    }
    let class_names: Vec<String> = if given.is_empty() {
        let names: BTreeSet<&str> = entries.iter().map(|entry| entry.class).collect();
        names.into_iter().map(str::to_owned).collect()
    } else {
        given.to_vec()
    };
    let channels = options.channels.unwrap_or(3);
    let mut decoder = Decoder { source, size: None, fixed: false, channels };
    if let Some(size) = options.size {
        (decoder.size, decoder.fixed) = (Some((size.extents(), "")), true);
    }
    let mut pictures =
        Pictures { train: Examples::default(), test: Examples::default(), class_names };
    for entry in &entries {
        let class = pictures.class_names.iter().position(|name| name == entry.class);
        let class = class.and_then(|class| u32::try_from(class).ok()).ok_or_else(|| {
            let problem = format!("class {:?} is not in labels.txt", entry.class);
            DatasetError::file(entry.path, problem)
        })?;
        let ([h, w], pixels) = decoder.decode(entry.path)?;
        if pictures.train.is_empty() && pictures.test.is_empty() {
            // Known after the first one, and said before all are decoded.
            limits.check(entries.len().saturating_mul(pixels.len()))?;
            let shape = [channels, h as usize, w as usize];
            let count = |part| entries.iter().filter(|entry| entry.part == part).count();
            let room = |part| Vec::with_capacity(count(part) * pixels.len());
            pictures.train = Examples::pictures(shape, room(Part::Train), Vec::new());
            pictures.test = Examples::pictures(shape, room(Part::Test), Vec::new());
        }
        let part = match entry.part {
            Part::Train => &mut pictures.train,
            Part::Test => &mut pictures.test,
        };
        part.push_picture(&pixels, class);
    }
    Ok(pictures)
}

/// Every picture with its class and part, in order.
fn entries(source: Source<'_>) -> Result<Vec<Entry<'_>>, DatasetError> {
    let paths = || source.names().iter().copied().filter(|name| is_picture(name));
    let in_part = |word: &str| {
        let begins = |path: &str| path.split_once('/').is_some_and(|(first, _)| first == word);
        paths().any(begins)
    };
    let split = in_part("train");
    // Where both are, `val` is what one chooses by, and `test` what one judges with.
    let test = if in_part("test") { "test" } else { "val" };
    let mut entries = Vec::new();
    for path in paths() {
        let (first, rest) = path.split_once('/').unwrap_or(("", path));
        if !split {
            entries.push(Entry { path, class: first, part: Part::Train });
            continue;
        }
        let part = match first {
            "train" => Part::Train,
            _ if first == test => Part::Test,
            "val" => continue,
            _ => {
                let problem = "lies beside train/: expected train/<class>/ and test/<class>/, or \
                               <class>/ alone";
                return Err(DatasetError::file(path, problem));
            }
        };
        let Some((class, _)) = rest.split_once('/') else {
            let problem = format!("lies in {first}/: expected {first}/<class>/");
            return Err(DatasetError::file(path, problem));
        };
        entries.push(Entry { path, class, part });
    }
    Ok(entries)
}

/// Decodes pictures of one size.
struct Decoder<'a> {
    source: Source<'a>,
    /// Height and width, and the picture that has them.
    size: Option<([u32; 2], &'a str)>,
    /// Whether pictures of other sizes are brought to it.
    fixed: bool,
    channels: usize,
}

impl<'a> Decoder<'a> {
    /// Height, width, and pixels `[c, h, w]`.
    fn decode(&mut self, path: &'a str) -> Result<([u32; 2], Vec<u8>), DatasetError> {
        let bytes = self.source.read(path)?;
        let wrong = |error: picture::PictureError| DatasetError::file(path, error.to_string());
        let [h, w] = match self.size {
            Some((size, _)) if self.fixed => size,
            known => {
                let (w, h) = picture::dimensions(&bytes).map_err(wrong)?;
                if w == 0 || h == 0 {
                    return Err(DatasetError::file(path, "the picture has no pixels"));
                }
                let (size, first) = *self.size.get_or_insert(([h, w], path));
                if known.is_some() && size != [h, w] {
                    let problem = format!(
                        "{w} x {h} pixels, {first} has {} x {}: give the size that all are \
                         brought to in dataset.toml (size = 32, or size = [HEIGHT, WIDTH])",
                        size[1], size[0]
                    );
                    return Err(DatasetError::file(path, problem));
                }
                size
            }
        };
        let planes = picture::to_planes(&bytes, w, h, self.channels == 1).map_err(wrong)?;
        Ok(([h, w], planes.concat()))
    }
}
