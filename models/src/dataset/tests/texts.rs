//! Text by characters.

use super::*;

#[test]
fn the_next_character_is_the_class() {
    let toml = b"context = 2\nalphabet = \"abc\"";
    let files = named(&[
        ("train.txt", b"abcab"),
        ("test.txt", "ca\u{e9}a".as_bytes()),
        ("dataset.toml", toml),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!((set.format, set.classes), ("text", 4));
    assert_eq!(set.class_names, ["a", "b", "c", "\u{fffd}"]);
    assert_eq!(set.example_shape(), [8]);
    assert_eq!(set.train.values, Values::Symbols(vec![0, 1, 1, 2, 2, 0]));
    assert_eq!((&set.train.labels[..], &set.test.labels[..]), (&[2, 0, 1][..], &[3, 0][..]));
    assert_eq!(set.test.select(&[1]).values, Values::Symbols(vec![0, 3]));
    let mut batches = Batches::new(&set.train, &set.normalization);
    let (x, labels) = batches.get(&[1], 0);
    assert_eq!((x, labels), (&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0][..], &[0][..]));
}

#[test]
fn the_end_of_a_text_is_for_testing() {
    let text: String = ('a'..='z').cycle().take(1000).collect();
    let set = decode(&named(&[("input.txt", text.as_bytes())])).unwrap();
    assert_eq!((set.classes, set.example_shape()), (97, vec![16 * 97]));
    assert_eq!((set.train.len(), set.test.len()), (800 - 16, 200 - 16));
    for (files, expected) in [
        (named(&[("train.txt", b"\xff")]), "train.txt: expected UTF-8"),
        (named(&[("train.txt", b"abc")]), "no examples"),
        (named(&[("train.txt", b"a"), ("dataset.toml", b"alphabet = \"aa\"")]), "each once"),
        (named(&[("train.txt", b"a"), ("dataset.toml", b"context = 0")]), "context is 0"),
        (
            named(&[("train.txt", &[b'a'; 99]), ("dataset.toml", b"mean = [0.5]")]),
            "dataset.toml: the characters of a text are not normalised",
        ),
    ] {
        let error = decode(&files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
}

/// A real text has no character that is not told apart.
#[test]
#[expect(clippy::print_stdout, reason = "says what is not tested")]
fn a_real_text_is_read() {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/text/tinyshakespeare_input.txt");
    let Ok(bytes) = std::fs::read(path) else {
        println!("absent, not tested: {path}");
        return;
    };
    let set = decode(&named(&[("input.txt", &bytes)])).unwrap();
    let counts = set.train.class_counts(97);
    assert_eq!((counts[96], counts.iter().filter(|count| **count > 0).count()), (0, 65));
    assert_eq!(set.train.len() + set.test.len(), bytes.len() - 32);
}
