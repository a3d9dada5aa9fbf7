//! Updates as agents encode them, and parameters as they decode them.

use bytes::Bytes;
use jobs::spec::{self, TrainTask, UpdateEncoding};
use link::blobs::Blobs;
use models::federated::encoding::{
    Coder, Encoder, Format, Header, decode_parameters, layout_digest,
};
use models::params::{Layout, Parameters};

/// The parameters of a task, as safetensors; the exact ones for an agent that knows no others.
pub(super) async fn received(blobs: &Blobs, work: &TrainTask, decodes: bool) -> Bytes {
    match work.encoded.as_ref().filter(|_| decodes) {
        None => blobs.get(&work.parameters).await.unwrap(),
        Some(encoded) => decode_parameters(&blobs.get(encoded).await.unwrap()).unwrap().into(),
    }
}

/// The update of a device that began with the bytes and has these parameters now, if it is not to
/// be plain.
pub(super) fn encoded(work: &TrainTask, bytes: &[u8], trained: &Parameters) -> Option<Vec<u8>> {
    let format = match work.update {
        UpdateEncoding::Plain {} => return None,
        UpdateEncoding::Float32(_) => Format::Float32,
        UpdateEncoding::Float16(_) => Format::Float16,
        UpdateEncoding::BFloat16(_) => Format::BFloat16,
        UpdateEncoding::Int8(_) | UpdateEncoding::TopK(_) => Format::Int8 { block: 1024 },
    };
    let layout = Layout::of(trained);
    let difference = work.update.is_difference();
    let base = difference.then(|| work.parameters.digest.to_string());
    let (values, digest) = (layout.total_len(), layout_digest(&layout));
    let coder = match work.update.coder() {
        None | Some(spec::Coder::Rans) => Coder::Rans,
        Some(spec::Coder::Zstd) => Coder::Zstd,
    };
    let header = Header { format, coder, sparse: false, values, layout: digest, base };
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, 1, &mut file);
    let base = Parameters::from_safetensors(bytes).unwrap();
    for (item, base) in trained.items().iter().zip(base.items()) {
        let own = |(value, base): (&f32, &f32)| if difference { value - base } else { *value };
        let values: Vec<f32> = item.values.iter().zip(&base.values).map(own).collect();
        encoder.push(&values, &mut file).unwrap();
    }
    encoder.finish(&mut file).unwrap();
    Some(file)
}
