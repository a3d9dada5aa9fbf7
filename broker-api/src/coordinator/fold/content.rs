//! The bytes of an update, or of global parameters, understood piece by piece.

use jobs::id::Digest;
use jobs::round::Base;
use models::federated::encoding::{Decoder, EncodingError, MAGIC, layout_digest};
use models::params::{Layout, ParametersError};

/// Bytes of values that are looked at while they are in the processor's cache.
const STRETCH_BYTES: usize = 64 * 1024;

/// The largest magnitude of a value of an update, 2^47. What a server optimizer steps against is a
/// difference of two such values at most, and 2^31 squares of it have a sum in `f32`, as which second
/// moments are kept.
pub(in crate::coordinator) const MAGNITUDE_MAX: f32 = 140_737_488_355_328.0;

/// What an update has to be.
#[derive(Debug, Clone)]
pub(in crate::coordinator) struct Expected {
    layout: Layout,
    layout_digest: String,
    /// The parameters that differences may be from.
    base: Option<Digest>,
    /// Whether its values are bounded: whose fault they are is known.
    bounded: bool,
}

/// Why bytes are no update.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(in crate::coordinator) enum ContentError {
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error(
        "{name}: value {index} is {value:e}, expected a magnitude of {MAGNITUDE_MAX:e} at most"
    )]
    Magnitude { name: String, index: usize, value: f32 },
    #[error("the round was over before it was read")]
    Forgotten,
}

/// Bytes that are being read.
#[derive(Debug, Default)]
pub(in crate::coordinator) struct Content {
    /// The first bytes, while they do not tell how it is written.
    head: Vec<u8>,
    form: Option<Form>,
}

#[derive(Debug)]
enum Form {
    /// Safetensors, behind the header.
    Plain {
        /// Bytes of a value that was cut by a piece's end.
        rest: Vec<u8>,
        offset: usize,
        /// Memory of the values at hand.
        values: Vec<f32>,
    },
    Encoded(Decoder),
}

impl Expected {
    /// Parameters of a model of this layout.
    pub(in crate::coordinator) fn parameters(layout: Layout) -> Self {
        let layout_digest = layout_digest(&layout);
        Self { layout, layout_digest, base: None, bounded: false }
    }

    /// What a device sends of a model of this layout, none of whose values is beyond
    /// [`MAGNITUDE_MAX`].
    pub(in crate::coordinator) fn sent(layout: Layout) -> Self {
        Self { bounded: true, ..Self::parameters(layout) }
    }

    /// Or differences from these parameters.
    pub(in crate::coordinator) fn or_differences_from(&mut self, base: Option<Digest>) {
        self.base = base;
    }

    /// The same for an update of an earlier round.
    pub(in crate::coordinator) fn of_base(&self, base: &Base) -> Self {
        Self { base: Some(base.parameters.digest.clone()), ..self.clone() }
    }

    pub(in crate::coordinator) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether values from `offset` on may be there.
    fn check(&self, offset: usize, values: &[f32]) -> Result<(), ContentError> {
        if !self.bounded {
            return Ok(self.layout.check_finite(offset, values)?);
        }
        // A loop without a way out is made of vectors; NaN is not within the bound either.
        if values.iter().fold(true, |all, value| all & (value.abs() <= MAGNITUDE_MAX)) {
            return Ok(());
        }
        self.layout.check_finite(offset, values)?;
        let at = values.iter().position(|value| value.abs() > MAGNITUDE_MAX).unwrap_or_default();
        let element = offset + at;
        let spans = self.layout.spans();
        let span = spans.get(spans.partition_point(|span| span.elements.end <= element));
        let (name, start) =
            span.map_or_else(Default::default, |span| (span.name.clone(), span.elements.start));
        Err(ContentError::Magnitude { name, index: element - start, value: values[at] })
    }

    fn decoder(&self) -> Decoder {
        let base = self.base.as_ref().map(Digest::as_str);
        Decoder::new(self.layout.total_len(), &self.layout_digest, base)
    }
}

impl Content {
    /// Whether its values are differences; not known before its header is read.
    pub(in crate::coordinator) fn is_difference(&self) -> bool {
        match &self.form {
            Some(Form::Encoded(decoder)) => decoder.is_difference(),
            Some(Form::Plain { .. }) | None => false,
        }
    }

    /// Reads the header, then hands out values with their offset.
    pub(in crate::coordinator) fn take(
        &mut self,
        piece: &[u8],
        expected: &Expected,
        mut with: impl FnMut(usize, &[f32]),
    ) -> Result<(), ContentError> {
        let head;
        let mut piece = piece;
        if self.form.is_none() {
            self.head.extend_from_slice(piece);
            let Some((form, start)) = Form::of(&self.head, expected)? else { return Ok(()) };
            self.form = Some(form);
            head = std::mem::take(&mut self.head);
            piece = head.get(start..).unwrap_or_default();
        }
        match &mut self.form {
            Some(Form::Plain { rest, offset, values }) => {
                if rest.is_empty() {
                    return plain_values(piece, expected, (rest, offset, values), &mut with);
                }
                let joined = [&std::mem::take(rest)[..], piece].concat();
                plain_values(&joined, expected, (rest, offset, values), &mut with)
            }
            Some(Form::Encoded(decoder)) => {
                let mut checked = Ok(());
                let taken = decoder.take(piece, |offset, values| {
                    if checked.is_ok() {
                        checked = expected.check(offset, values);
                        with(offset, values);
                    }
                });
                taken.map_err(|error| named(error, &expected.layout))?;
                checked
            }
            None => Ok(()),
        }
    }

    pub(in crate::coordinator) fn finish(self, expected: &Expected) -> Result<(), ContentError> {
        let (rest, offset) = match self.form {
            Some(Form::Encoded(decoder)) => return Ok(decoder.finish()?),
            Some(Form::Plain { rest, offset, .. }) => (rest, offset),
            None => (self.head, 0),
        };
        let total = expected.layout.total_len();
        if offset != total || !rest.is_empty() {
            let problem = format!("it ends after {offset} of {total} values");
            return Err(ParametersError::Format(problem).into());
        }
        Ok(())
    }
}

impl Form {
    /// As the first bytes tell, and how many of them are no values; `None` while there are too few.
    fn of(head: &[u8], expected: &Expected) -> Result<Option<(Self, usize)>, ParametersError> {
        if head.starts_with(MAGIC) {
            return Ok(Some((Self::Encoded(expected.decoder()), 0)));
        }
        let Some(layout) = Layout::parse(head)? else { return Ok(None) };
        layout.check_like(&expected.layout)?;
        Ok(Some((
            Self::Plain { rest: Vec::new(), offset: 0, values: Vec::new() },
            layout.data_start(),
        )))
    }
}

fn plain_values(
    bytes: &[u8],
    expected: &Expected,
    (rest, offset, values): (&mut Vec<u8>, &mut usize, &mut Vec<f32>),
    with: &mut impl FnMut(usize, &[f32]),
) -> Result<(), ContentError> {
    let model = &expected.layout;
    let (whole, cut) = bytes.split_at(bytes.len() - bytes.len() % 4);
    rest.extend_from_slice(cut);
    if *offset + whole.len() / 4 > model.total_len() {
        let problem = "more bytes than the header announces".to_owned();
        return Err(ParametersError::Format(problem).into());
    }
    for stretch in whole.chunks(STRETCH_BYTES) {
        values.clear();
        models::params::extend_from_le_bytes(values, stretch);
        expected.check(*offset, values)?;
        with(*offset, values);
        *offset += values.len();
    }
    Ok(())
}

/// The same error with the name of the parameter.
fn named(error: EncodingError, model: &Layout) -> ContentError {
    if let EncodingError::NotFinite { index, value, .. } = error
        && let Err(named) = model.check_finite(index, &[value])
    {
        return named.into();
    }
    error.into()
}
