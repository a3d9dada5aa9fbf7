//! Parameters of the object store, encoded for devices.

use jobs::id::BlobRef;
use link::blobs::Blobs;
use models::federated::encoding::{Coder, Encoder, Format, Header, layout_digest};
use models::params::Layout;

use super::values::Values;
use super::{ReadError, Updates};
use crate::coordinator::fold::Fold;
use crate::coordinator::fold::content::Expected;

/// Values that are read at a time.
const PIECE: usize = 64 * 1024;

/// Stores parameters of a model under a name in a format, behind the header that they have as
/// safetensors. In memory is the encoded file.
pub(in crate::coordinator) async fn encode(
    blobs: &Blobs,
    model: &Layout,
    parameters: &BlobRef,
    (format, seed): (Format, u64),
    name: String,
) -> Result<BlobRef, ReadError> {
    let mut left = model.total_len();
    let layout = layout_digest(model);
    let (coder, base) = (Coder::Rans, None);
    let header = Header { format, coder, sparse: false, values: left, layout, base };
    let mut file = model.header();
    let mut encoder = Encoder::dense(header, seed, &mut file);
    let mut values = Values::of_parameters(blobs, parameters).await?;
    let expected = Expected::parameters(model.clone());
    while left > 0 {
        let piece = values.next(left.min(PIECE), &expected).await?;
        encoder.push(&piece, &mut file)?;
        left -= piece.len();
    }
    values.end().await?;
    encoder.finish(&mut file)?;
    Ok(blobs.put_named(name, file.into()).await?)
}

impl Updates {
    pub(in crate::coordinator) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The model, unless the thread ended.
    pub(in crate::coordinator) async fn model(&self) -> Option<Layout> {
        self.ask(|fold: &mut Fold| fold.model().clone()).await.ok()
    }
}
