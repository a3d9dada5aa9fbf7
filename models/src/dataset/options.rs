//! `dataset.toml`: what the files of a data set do not say themselves.

use serde::Deserialize;

use super::DatasetError;
use super::files::Source;

/// The file's name.
pub(super) const FILE: &str = "dataset.toml";

/// What `dataset.toml` may say; everything has a default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// Height and width that pictures of a folder are brought to; that of the pictures when they
    /// are all of one size.
    pub(super) size: Option<Size>,
    /// 1 (grey) or 3 (red, green, blue) for pictures of a folder; 3 when absent.
    pub(super) channels: Option<usize>,
    /// The column of a table that has the label.
    pub(super) label: Option<String>,
    /// Number of classes, when the files do not show all of them.
    pub(super) classes: Option<usize>,
    /// Characters that a text's next one is told from.
    pub(super) context: Option<usize>,
    /// Characters of a text that are told apart, each a class; printable ASCII when absent.
    pub(super) alphabet: Option<String>,
    /// Share of the examples that is for testing where no file is, 0 to below 1.
    pub(super) test_fraction: Option<f64>,
    /// Draws which ones.
    pub(super) seed: u64,
    /// How values become inputs, `(value - mean) / std`, pixels being 0 to 1: one value or one
    /// for each channel.
    pub(super) mean: Option<Vec<f32>>,
    /// See `mean`.
    pub(super) std: Option<Vec<f32>>,
}

/// One side, or height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Side(u32),
    HeightWidth([u32; 2]),
}

impl Size {
    /// Height and width.
    pub(super) fn extents(self) -> [u32; 2] {
        match self {
            Self::Side(side) => [side, side],
            Self::HeightWidth(extents) => extents,
        }
    }
}

/// Reads the file, if it is there.
pub(super) fn read(source: Source<'_>) -> Result<Options, DatasetError> {
    let Some(text) = source.text(FILE)? else { return Ok(Options::default()) };
    let problem = |problem: String| DatasetError::file(FILE, problem);
    let options: Options =
        toml::from_str(&text).map_err(|error| problem(error.to_string().trim_end().to_owned()))?;
    let side_max = 4096;
    if let Some(size) = options.size
        && !size.extents().iter().all(|side| (1..=side_max).contains(side))
    {
        let [h, w] = size.extents();
        return Err(problem(format!("size is {h} x {w}: expected sides of 1 to {side_max}")));
    }
    for (name, value, min, max) in [
        ("channels", options.channels, 1, 3),
        ("classes", options.classes, 1, super::CLASSES_MAX),
        ("context", options.context, 1, 4096),
    ] {
        if let Some(value) = value
            && (value < min || value > max || (name == "channels" && value == 2))
        {
            let expected =
                if name == "channels" { "1 or 3".to_owned() } else { format!("{min} to {max}") };
            return Err(problem(format!("{name} is {value}: expected {expected}")));
        }
    }
    if let Some(share) = options.test_fraction
        && !(0.0..1.0).contains(&share)
    {
        return Err(problem(format!("test_fraction is {share}: expected 0 to below 1")));
    }
    Ok(options)
}
