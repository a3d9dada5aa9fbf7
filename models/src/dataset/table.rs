//! Tables: comma-separated values (RFC 4180), one example a line, one column for the label.

use std::collections::BTreeMap;

use super::files::Source;
use super::options::Options;
use super::{CLASSES_MAX, DatasetError, Examples, Limits, Values, gunzip};

/// Columns of a table, at most.
const COLUMNS_MAX: usize = 65_536;

/// The parts of a data set, with the label still as text.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) train: Examples,
    pub(super) test: Examples,
    /// Names of the features' columns; empty without a header.
    pub(super) columns: Vec<String>,
    /// Names of the classes; empty when labels are numbers.
    pub(super) class_names: Vec<String>,
    /// One above the largest label.
    pub(super) classes: usize,
}

/// Whether a name is that of a table.
pub(super) fn is_table(name: &str) -> bool {
    !name.contains('/') && gunzip::plain(name).strip_suffix(".csv").is_some()
}

/// Reads `train*.csv` and `test*.csv`, or the one table that is there.
pub(super) fn decode(
    source: Source<'_>,
    options: &Options,
    class_names: &[String],
    limits: Limits,
) -> Result<Tables, DatasetError> {
    let names: Vec<&str> = source.names().iter().copied().filter(|name| is_table(name)).collect();
    let begins = |word| names.iter().copied().filter(move |name| name.starts_with(word));
    let (mut train, mut test): (Vec<_>, Vec<_>) =
        (begins("train").collect(), begins("test").collect());
    match (&names[..], train.is_empty() && test.is_empty()) {
        ([one], true) => train.push(one),
        (_, true) => {
            let problem = "one of several tables: expected train.csv and test.csv, or one table";
            return Err(DatasetError::file(names[0], problem));
        }
        (_, false) if train.is_empty() => train.append(&mut test),
        (_, false) => {}
    }
    let mut reader = Reader { options, limits, header: None, width: None, words: Words::default() };
    let mut tables = Tables::default();
    for name in train {
        tables.train.append(reader.read(source, name, tables.train.bytes())?);
    }
    for name in test {
        let bytes = tables.train.bytes() + tables.test.bytes();
        tables.test.append(reader.read(source, name, bytes)?);
    }
    let Reader { header, width, words, .. } = reader;
    let shape = [1, 1, width.unwrap_or(0)];
    let (labels, class_names, classes) = words.classes(class_names, options.classes)?;
    for part in [&mut tables.train, &mut tables.test] {
        part.shape = shape;
        for label in &mut part.labels {
            *label = labels[*label as usize];
        }
    }
    (tables.columns, tables.class_names) = (header.unwrap_or_default(), class_names);
    tables.classes = classes;
    Ok(tables)
}

/// Reads one file after the other; all have the same columns.
struct Reader<'a> {
    options: &'a Options,
    limits: Limits,
    /// The first file's, features only.
    header: Option<Vec<String>>,
    /// Number of features.
    width: Option<usize>,
    words: Words,
}

impl Reader<'_> {
    /// One file's examples; labels are indices into the words.
    fn read(
        &mut self,
        source: Source<'_>,
        file: &str,
        bytes: usize,
    ) -> Result<Examples, DatasetError> {
        let content = source.content(file)?;
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.has_headers(false).trim(csv::Trim::All).from_reader(&*content);
        let mut record = csv::StringRecord::new();
        let (mut numbers, mut labels) = (Vec::new(), Vec::new());
        let mut layout: Option<Layout> = None;
        while reader.read_record(&mut record).map_err(|error| damaged(file, &error))? {
            let Some(layout) = &layout else {
                let found = Layout::of(file, &record, self.options.label.as_deref())?;
                self.agree(file, &found)?;
                if !found.has_header() {
                    found.push(file, &record, &mut numbers)?;
                    labels.push(self.words.index(file, &record, found.label)?);
                }
                layout = Some(found);
                continue;
            };
            layout.push(file, &record, &mut numbers)?;
            labels.push(self.words.index(file, &record, layout.label)?);
            self.limits.check(bytes + numbers.len() * size_of::<f32>())?;
        }
        let shape = [1, 1, self.width.unwrap_or(0)];
        Ok(Examples { shape, values: Values::Numbers(numbers), labels })
    }

    /// Checks that a file has the features of the first.
    fn agree(&mut self, file: &str, layout: &Layout) -> Result<(), DatasetError> {
        let header: Vec<String> = layout.features().cloned().collect();
        let width = layout.width - 1;
        let known = self.width.is_none_or(|known| known == width);
        let header_known = self.header.as_ref().is_none_or(|known| *known == header);
        if !known || !header_known {
            let problem = format!(
                "{width} features ({}), expected those of the first file ({})",
                header.join(", "),
                self.header.as_ref().map_or(String::new(), |known| known.join(", "))
            );
            return Err(DatasetError::file(file, problem));
        }
        (self.header, self.width) = (Some(header), Some(width));
        Ok(())
    }
}

/// Where the columns of a file are.
struct Layout {
    /// Empty without a header.
    header: Vec<String>,
    /// Number of columns.
    width: usize,
    /// The label's column.
    label: usize,
}

impl Layout {
    /// By the first line: it is a header when it has the label's name, or no number at all.
    fn of(
        file: &str,
        first: &csv::StringRecord,
        label: Option<&str>,
    ) -> Result<Self, DatasetError> {
        let width = first.len();
        if !(2..=COLUMNS_MAX).contains(&width) {
            let problem =
                format!("line 1: {width} columns, expected 2 to {COLUMNS_MAX} with commas between");
            return Err(DatasetError::file(file, problem));
        }
        let named = first.iter().position(|name| name == label.unwrap_or("label"));
        let words = first.iter().all(|field| field.parse::<f32>().is_err());
        let header = if named.is_some() || words {
            first.iter().map(str::to_owned).collect()
        } else {
            Vec::new()
        };
        match (named, label) {
            (None, Some(label)) => {
                let problem = format!(
                    "line 1: no column is named {label:?}, which dataset.toml gives as the label"
                );
                Err(DatasetError::file(file, problem))
            }
            (named, _) => Ok(Self { header, width, label: named.unwrap_or(width - 1) }),
        }
    }

    fn has_header(&self) -> bool {
        !self.header.is_empty()
    }

    /// Names of the features' columns.
    fn features(&self) -> impl Iterator<Item = &String> {
        let label = self.label;
        let features = self.header.iter().enumerate().filter(move |(column, _)| *column != label);
        features.map(|(_, name)| name)
    }

    /// Adds a line's features.
    fn push(
        &self,
        file: &str,
        record: &csv::StringRecord,
        numbers: &mut Vec<f32>,
    ) -> Result<(), DatasetError> {
        for (column, field) in record.iter().enumerate() {
            if column == self.label {
                continue;
            }
            match field.parse::<f32>() {
                Ok(number) if number.is_finite() => numbers.push(number),
                _ => {
                    let found = if field.is_empty() { "nothing".into() } else { quoted(field) };
                    let name = self.header.get(column);
                    let name = name.map_or_else(String::new, |name| format!(" ({})", quoted(name)));
                    let problem = format!(
                        "line {}, column {}{name}: found {found}, expected a number",
                        line(record),
                        column + 1
                    );
                    return Err(DatasetError::file(file, problem));
                }
            }
        }
        Ok(())
    }
}

/// The labels' texts, each with the index it was first seen with, and where.
#[derive(Default)]
struct Words {
    index: BTreeMap<String, u32>,
    /// File and line of the first one.
    seen: Vec<(String, u64)>,
}

impl Words {
    fn index(
        &mut self,
        file: &str,
        record: &csv::StringRecord,
        column: usize,
    ) -> Result<u32, DatasetError> {
        let word = record.get(column).unwrap_or_default();
        if let Some(index) = self.index.get(word) {
            return Ok(*index);
        }
        let place = format!("line {}, column {}", line(record), column + 1);
        if word.is_empty() {
            let problem = format!("{place}: found nothing, expected the label");
            return Err(DatasetError::file(file, problem));
        }
        if word.contains(['\n', '\r']) {
            let problem = format!(
                "{place}: the label {} goes on over the end of the line: is a quote left open?",
                quoted(word)
            );
            return Err(DatasetError::file(file, problem));
        }
        if self.index.len() == CLASSES_MAX {
            let problem = format!(
                "{place}: more than {CLASSES_MAX} different labels, expected classes: name the \
                 label's column in dataset.toml (label = \"...\")"
            );
            return Err(DatasetError::file(file, problem));
        }
        let index = u32::try_from(self.index.len()).unwrap_or(u32::MAX);
        self.index.insert(word.to_owned(), index);
        self.seen.push((file.to_owned(), line(record)));
        Ok(index)
    }

    /// The one label that is no number, among others that are.
    fn only_word(&self) -> Option<(&str, u32)> {
        let mut words = self.index.iter().filter(|(word, _)| number(word).is_none());
        let (word, index) = words.next()?;
        (words.next().is_none() && self.index.len() > 1).then_some((word.as_str(), *index))
    }

    /// The class of each index, the classes' names, and their number. Names are those given, or
    /// all that were seen in alphabetical order; labels that are whole numbers, and no names that
    /// were given, are classes themselves.
    fn classes(
        self,
        given: &[String],
        count: Option<usize>,
    ) -> Result<(Vec<u32>, Vec<String>, usize), DatasetError> {
        let among_given = self.index.keys().any(|word| given.contains(word));
        let numbers = !among_given && self.index.keys().all(|word| number(word).is_some());
        let names: Vec<String> = match (numbers, given.is_empty()) {
            (false, true) => self.index.keys().cloned().collect(),
            _ => given.to_vec(),
        };
        if given.is_empty()
            && let Some((word, index)) = self.only_word()
        {
            let (file, line) = &self.seen[index as usize];
            if *line == 1 {
                let problem = format!(
                    "line 1 looks like a header with numbers for names: give label = {} in \
                     dataset.toml",
                    quoted(word)
                );
                return Err(DatasetError::file(file, problem));
            }
        }
        let known = if names.is_empty() { count } else { Some(names.len()) };
        let mut classes = vec![0; self.index.len()];
        for (word, index) in &self.index {
            let class = if numbers {
                number(word)
            } else {
                names.iter().position(|name| name == word).and_then(|class| class.try_into().ok())
            };
            let class = class.filter(|class| known.is_none_or(|count| (*class as usize) < count));
            let class = class.ok_or_else(|| {
                let (file, line) = &self.seen[*index as usize];
                let problem = format!(
                    "line {line}: label {} is none of the {} classes of labels.txt or dataset.toml",
                    quoted(word),
                    known.unwrap_or_default()
                );
                DatasetError::file(file, problem)
            })?;
            classes[*index as usize] = class;
        }
        let seen = classes.iter().max().map_or(0, |largest| *largest as usize + 1);
        Ok((classes, names, known.unwrap_or(seen)))
    }
}

/// A class given as a number, `3` or `3.0`.
fn number(word: &str) -> Option<u32> {
    let word = word.strip_suffix(".0").unwrap_or(word);
    let class: u32 = word.parse().ok()?;
    ((class as usize) < CLASSES_MAX).then_some(class)
}

fn line(record: &csv::StringRecord) -> u64 {
    record.position().map_or(0, csv::Position::line)
}

/// A field for a message, not too long.
fn quoted(field: &str) -> String {
    let short: String = field.chars().take(40).collect();
    format!("{short:?}")
}

fn damaged(file: &str, error: &csv::Error) -> DatasetError {
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => format!(
            "line {}: {len} columns, expected {expected_len} as in the lines before",
            pos.as_ref().map_or(0, csv::Position::line)
        ),
        csv::ErrorKind::Utf8 { pos, err } => format!(
            "line {}, column {}: not UTF-8 text",
            pos.as_ref().map_or(0, csv::Position::line),
            err.field() + 1
        ),
        csv::ErrorKind::Io(_)
        | csv::ErrorKind::Seek
        | csv::ErrorKind::Serialize(_)
        | csv::ErrorKind::Deserialize { .. }
        | _ => error.to_string(),
    };
    DatasetError::file(file, problem)
}

/// A name for the label's column that no feature has.
pub fn label_name(columns: &[String]) -> String {
    let mut name = "label".to_owned();
    while columns.contains(&name) {
        name.push_str("_class");
    }
    name
}

/// Writes examples of a table; the label is the last column, with [`label_name`]. `None` when they
/// are no table.
pub fn encode(examples: &Examples, columns: &[String], class_names: &[String]) -> Option<Vec<u8>> {
    let Values::Numbers(numbers) = &examples.values else { return None };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header: Vec<String> = if columns.is_empty() {
        (1..=examples.size()).map(|column| format!("x{column}")).collect()
    } else {
        columns.to_vec()
    };
    writer
        .write_record(header.iter().map(String::as_str).chain([label_name(columns).as_str()]))
        .ok()?;
    for (row, label) in numbers.chunks_exact(examples.size().max(1)).zip(&examples.labels) {
        let name = class_names.get(*label as usize).cloned();
        let label = name.unwrap_or_else(|| label.to_string());
        writer.write_record(row.iter().map(f32::to_string).chain([label])).ok()?;
    }
    writer.into_inner().ok()
}
