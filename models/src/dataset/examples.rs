//! Labelled examples, kept as they came until a batch needs floats.

/// Labelled examples of one shape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    /// Shape of one example as a model takes it, `[c, h, w]`; `[1, 1, d]` for a table's row,
    /// `[1, context, symbols]` for text.
    pub shape: [usize; 3],
    /// Example after example.
    pub values: Values,
    /// Class of each example.
    pub labels: Vec<u32>,
}

/// What examples are made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Pixels 0 to 255, channels first; a model sees 0 to 1, normalised.
    Pixels(Vec<u8>),
    /// Numbers of a table; a model sees them normalised.
    Numbers(Vec<f32>),
    /// Symbols of a text by their index; a model sees a vector with a single 1 for each.
    Symbols(Vec<u8>),
}

impl Default for Values {
    fn default() -> Self {
        Self::Pixels(Vec::new())
    }
}

impl Values {
    /// Nothing of the same kind.
    fn empty(&self, capacity: usize) -> Self {
        match self {
            Self::Pixels(_) => Self::Pixels(Vec::with_capacity(capacity)),
            Self::Numbers(_) => Self::Numbers(Vec::with_capacity(capacity)),
            Self::Symbols(_) => Self::Symbols(Vec::with_capacity(capacity)),
        }
    }

    fn extend(&mut self, other: &Self, range: std::ops::Range<usize>) {
        match (self, other) {
            (Self::Pixels(to), Self::Pixels(from)) | (Self::Symbols(to), Self::Symbols(from)) => {
                to.extend_from_slice(&from[range]);
            }
            (Self::Numbers(to), Self::Numbers(from)) => to.extend_from_slice(&from[range]),
            (Self::Pixels(_) | Self::Numbers(_) | Self::Symbols(_), _) => {
                unreachable!("a data set's examples are of one kind")
            }
        }
    }

    /// Keeps the pieces of a size that `keep` says, in their place.
    fn retain(&mut self, size: usize, keep: &[bool]) {
        match self {
            Self::Pixels(values) | Self::Symbols(values) => retain(values, size, keep),
            Self::Numbers(values) => retain(values, size, keep),
        }
    }

    /// Bytes in memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Pixels(bytes) | Self::Symbols(bytes) => bytes.len(),
            Self::Numbers(numbers) => numbers.len() * size_of::<f32>(),
        }
    }
}

fn retain<T: Copy>(values: &mut Vec<T>, size: usize, keep: &[bool]) {
    let mut kept = 0;
    for (index, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
        values.copy_within(index * size..(index + 1) * size, kept);
        kept += size;
    }
    values.truncate(kept);
    values.shrink_to_fit();
}

impl Examples {
    /// Pictures of `shape [c, h, w]`: `pixels [n, c, h, w]`, `labels [n]`.
    pub fn pictures(shape: [usize; 3], pixels: Vec<u8>, labels: Vec<u32>) -> Self {
        Self { shape, values: Values::Pixels(pixels), labels }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one example as a model takes it, `c * h * w`.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values of one example as they are kept: one for a symbol.
    pub(super) fn kept_size(&self) -> usize {
        match self.values {
            Values::Pixels(_) | Values::Numbers(_) => self.size(),
            Values::Symbols(_) => self.shape[0] * self.shape[1],
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.values.bytes() + self.labels.len() * size_of::<u32>()
    }

    /// Pixels of one example, `[c, h, w]` row-major; `None` when examples are no pictures.
    ///
    /// # Panics
    /// When the index is not below [`Examples::len`].
    pub fn picture(&self, index: usize) -> Option<&[u8]> {
        let Values::Pixels(pixels) = &self.values else { return None };
        let size = self.size();
        Some(&pixels[index * size..(index + 1) * size])
    }

    /// The examples with these indices, in their order.
    ///
    /// # Panics
    /// When an index is not below [`Examples::len`].
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Examples {
        let size = self.kept_size();
        let mut values = self.values.empty(indices.len() * size);
        for index in indices {
            values.extend(&self.values, index * size..(index + 1) * size);
        }
        let labels = indices.iter().map(|index| self.labels[*index]).collect();
        Examples { shape: self.shape, values, labels }
    }

    /// Moves those that are `wanted` out; needs no more memory than what is moved.
    ///
    /// # Panics
    /// When `wanted` does not have [`Examples::len`] entries.
    #[must_use]
    pub fn split_off(&mut self, wanted: &[bool]) -> Examples {
        assert_eq!(wanted.len(), self.len(), "each example stays or goes");
        let indices: Vec<usize> = (0..wanted.len()).filter(|index| wanted[*index]).collect();
        let moved = self.select(&indices);
        let keep: Vec<bool> = wanted.iter().map(|wanted| !wanted).collect();
        self.values.retain(self.kept_size(), &keep);
        retain(&mut self.labels, 1, &keep);
        moved
    }

    /// Examples of each of `classes` classes; labels outside of them are not counted.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for label in &self.labels {
            if let Some(count) = counts.get_mut(*label as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// Adds a picture of the same shape.
    pub(super) fn push_picture(&mut self, pixels: &[u8], label: u32) {
        if let Values::Pixels(all) = &mut self.values {
            all.extend_from_slice(pixels);
            self.labels.push(label);
        }
    }

    /// Adds the examples of another file of the same shape.
    pub(super) fn append(&mut self, other: Examples) {
        self.shape = other.shape;
        if self.labels.is_empty() {
            *self = other;
            return;
        }
        let size = other.len() * other.kept_size();
        self.values.extend(&other.values, 0..size);
        self.labels.extend(other.labels);
    }
}
