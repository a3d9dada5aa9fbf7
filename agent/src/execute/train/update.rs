//! The bytes of an update, as the task wants them.

use std::fs::File;
use std::io::Read as _;

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, DeviceId, Digest, RoundNumber};
use jobs::report::{Failure, FailureCode};
use jobs::spec::{
    self, Exact, Int8, Rounded, TaskId, TopK, TrainTask, UpdateEncoding, ValueFormat,
};
use link::blobs::Existing;
use models::federated::encoding::{
    Coder, Encoder, EncodingError, Format, Header, encode_largest, layout_digest,
};
use models::federated::statistics::Statistics;
use models::params::{Layout, Parameters, ParametersBlob, from_le_bytes};

use super::prepare::wrong;
use crate::cache;
use crate::device::Device;
use crate::execute::Run;
use crate::kept_local::{Follows, KeptLocal};

/// Values of what was left out that are read at once.
const LEFT_PIECE: usize = 64 * 1024;

/// What an update is made for.
pub(super) struct Update<'a> {
    pub(super) id: &'a TaskId,
    pub(super) device: &'a DeviceId,
    /// What updates left for later ones.
    pub(super) residuals: &'a KeptLocal,
    /// The last round in which an update counted.
    counted: Option<RoundNumber>,
    /// What is owed nothing: a device measures it anew in each round.
    statistics: Statistics,
    pub(super) encoding: UpdateEncoding,
    /// The round's parameters.
    pub(super) base: &'a BlobRef,
    seed: u64,
}

/// An update that the broker can read.
pub(super) struct Given {
    pub(super) parameters: BlobRef,
    /// Of one that is held on the device; others are in the store.
    pub(super) crc32: Option<u32>,
}

impl<'a> Update<'a> {
    pub(super) fn of(device: &'a Device, id: &'a TaskId, task: &'a TrainTask) -> Self {
        Self {
            id,
            device: &device.config.device,
            residuals: &device.residuals,
            counted: task.counted,
            statistics: Statistics::default(),
            encoding: task.update,
            base: &task.parameters,
            seed: task.seed,
        }
    }

    /// The same of a model with these running statistics.
    pub(super) fn with(self, statistics: Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// The update of a device that began with `received` and has `parameters` now. Another attempt
    /// at the same round gives the same bytes; what they leave out is kept before they are given.
    pub(super) fn encode(
        &self,
        received: &[u8],
        mut parameters: Parameters,
    ) -> Result<Vec<u8>, Failure> {
        let (format, share) = match self.encoding {
            UpdateEncoding::Plain {} => return Ok(parameters.to_safetensors()),
            UpdateEncoding::Float32(Exact { .. }) => (Format::Float32, None),
            UpdateEncoding::Float16(Rounded { .. }) => (Format::Float16, None),
            UpdateEncoding::BFloat16(Rounded { .. }) => (Format::BFloat16, None),
            UpdateEncoding::Int8(Int8 { block, .. }) => (int8(block), None),
            UpdateEncoding::TopK(TopK { share, values, block, .. }) => {
                let format = match values {
                    ValueFormat::Float32 => Format::Float32,
                    ValueFormat::Float16 => Format::Float16,
                    ValueFormat::BFloat16 => Format::BFloat16,
                    ValueFormat::Int8 => int8(block),
                };
                (format, Some(share))
            }
        };
        let layout = Layout::of(&parameters);
        let header = Header {
            format,
            coder: coder(self.encoding),
            sparse: share.is_some(),
            values: layout.total_len(),
            layout: layout_digest(&layout),
            base: self.encoding.is_difference().then(|| self.base.digest.to_string()),
        };
        if header.base.is_some() {
            parameters.combine(&base(received, &layout)?, |value, base| value - base);
        }
        match share {
            Some(share) => self.largest(&header, share, &layout, parameters),
            None => self.all(header, &parameters),
        }
    }

    fn all(&self, header: Header, values: &Parameters) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::dense(header, self.seed(), &mut bytes);
        let pushed =
            values.items().iter().try_for_each(|item| encoder.push(&item.values, &mut bytes));
        let finished = pushed.and_then(|()| encoder.finish(&mut bytes));
        finished.map_err(|error| unencodable(&error))?;
        Ok(bytes)
    }

    /// Sends the largest differences, what was left by the last update that counted included: one
    /// that did not is gone with all that it said and left out. A late update counts in a later
    /// round than its own, and before the device is asked for another one.
    fn largest(
        &self,
        header: &Header,
        share: f64,
        layout: &Layout,
        mut moved: Parameters,
    ) -> Result<Vec<u8>, Failure> {
        let TaskId { job, round, .. } = self.id;
        let before = self.counted.and_then(|counted| self.residuals.last_to(job, counted.0));
        if let Some(file) = before.and_then(|round| self.residuals.file_of(job, round)) {
            add_left(&mut moved, file, layout).map_err(|error| unreadable(&error))?;
        }
        let bytes = encode_largest(header, self.seed(), share, &mut moved.values_mut());
        let bytes = bytes.map_err(|error| unencodable(&error))?;
        for (values, span) in moved.values_mut().into_iter().zip(layout.spans()) {
            let (start, length) = (span.elements.start, span.elements.len());
            self.statistics.within(start, length).for_each(|owed| values[owed].fill(0.0));
        }
        self.residuals.keep(job, round.0, Follows::only(before), &moved)?;
        Ok(bytes)
    }

    /// The task's seed is that of all devices; the errors of their rounding are to cancel out.
    fn seed(&self) -> u64 {
        let digest = link::digest::of(self.device.as_str().as_bytes());
        let own = u64::from_str_radix(&digest.hex()[..16], 16);
        self.seed ^ own.expect("16 hexadecimal digits fit")
    }
}

fn coder(encoding: UpdateEncoding) -> Coder {
    match encoding.coder() {
        None | Some(spec::Coder::Rans) => Coder::Rans,
        Some(spec::Coder::Zstd) => Coder::Zstd,
    }
}

fn int8(block: u32) -> Format {
    Format::Int8 { block: block as usize }
}

/// The parameters that the device began with, which lie as what it has now.
fn base<'a>(received: &'a [u8], layout: &Layout) -> Result<ParametersBlob<'a>, Failure> {
    let base = ParametersBlob::parse(received).map_err(wrong)?;
    base.check_like(layout).map_err(wrong)?;
    Ok(base)
}

/// Adds what an update left out, if it is of this model.
fn add_left(moved: &mut Parameters, mut file: File, layout: &Layout) -> std::io::Result<()> {
    let mut bytes = layout.header();
    let header = bytes.clone();
    let length = file.metadata()?.len();
    if length == layout.byte_len() as u64 {
        file.read_exact(&mut bytes)?;
    }
    if length != layout.byte_len() as u64 || bytes != header {
        tracing::warn!("what an update left out is of another model, and is not added");
        return Ok(());
    }
    for part in moved.values_mut() {
        for values in part.chunks_mut(LEFT_PIECE) {
            bytes.resize(4 * values.len(), 0);
            file.read_exact(&mut bytes)?;
            let left = from_le_bytes(&bytes);
            values.iter_mut().zip(left).for_each(|(value, left)| *value += left);
        }
    }
    Ok(())
}

fn unreadable(error: &std::io::Error) -> Failure {
    let message = format!("what an update left out cannot be read: {error}");
    Failure::new(FailureCode::Internal, message)
}

fn unencodable(error: &EncodingError) -> Failure {
    Failure::new(FailureCode::Diverged, format!("the update cannot be encoded: {error}"))
}

impl Run {
    /// Holds an update whose digest may be known; none where the disk does not take it.
    pub(super) async fn hold(&self, update: Bytes, digest: Option<Digest>) -> Option<Given> {
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let write = move || {
            device.held.keep(&id, &update)?;
            let digest = digest.unwrap_or_else(|| link::digest::of(&update));
            let (size, name) = (Size(update.len() as u64), Some(device.held.name(&id)));
            let crc32 = Some(link::digest::crc32(&update));
            Ok(Given { parameters: BlobRef { name, ..BlobRef::by_digest(digest, size) }, crc32 })
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.inspect_err(|error| tracing::warn!("an update is stored, not held: {error}")).ok()
    }

    /// Gives the very same parameters as an update, though they are in the store.
    pub(super) async fn hand_over_untouched(
        &self,
        task: TrainTask,
        received: Bytes,
    ) -> Result<Given, Failure> {
        let (device, may_hold) = (&self.executor.device, self.holds(&task));
        if task.update == UpdateEncoding::default() && task.encoded.is_none() {
            let digest = task.parameters.digest.clone();
            if may_hold && let Some(held) = self.hold(received.clone(), Some(digest)).await {
                return Ok(held);
            }
            let parameters =
                BlobRef { name: Some(self.update_name()), object: None, ..task.parameters };
            let sent = device.blobs.put_as(&parameters, received, Existing::Replace).await;
            sent.map_err(|error| cache::explain(&error))?;
            return Ok(Given { parameters, crc32: None });
        }
        let (shared, id) = (device.clone(), self.id.clone());
        let work = move || {
            let parameters = Parameters::from_safetensors(&received).map_err(wrong)?;
            Update::of(&shared, &id, &task).encode(&received, parameters)
        };
        let encoded = self.executor.compute.train(self.thread_name("encode"), work).await?;
        self.hand_over(encoded, may_hold).await
    }
}

/// Refuses encodings that cannot be, whoever asked for them.
pub(super) fn check(encoding: UpdateEncoding) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::new(FailureCode::InvalidSpec, message));
    match encoding {
        UpdateEncoding::Int8(Int8 { block, .. }) | UpdateEncoding::TopK(TopK { block, .. })
            if !(256..=4096).contains(&block) =>
        {
            refuse(format!("update: block is {block}: 256 to 4096"))
        }
        UpdateEncoding::TopK(TopK { share, .. }) if !(share > 0.0 && share <= 0.5) => {
            refuse(format!("update: share is {share}: above 0, at most 0.5"))
        }
        UpdateEncoding::Plain {}
        | UpdateEncoding::Float32(_)
        | UpdateEncoding::Float16(_)
        | UpdateEncoding::BFloat16(_)
        | UpdateEncoding::Int8(_)
        | UpdateEncoding::TopK(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use models::params::Parameter;

    use super::*;

    fn parameters(name: &str, values: Vec<f32>) -> Parameters {
        let shape = vec![values.len()];
        Parameters::new(vec![Parameter { name: name.to_owned(), shape, values }]).unwrap()
    }

    #[test]
    fn what_was_left_out_is_added_if_it_is_of_this_model() {
        let length = LEFT_PIECE + 3;
        let left = parameters("w", vec![0.25; length]);
        let bytes = left.to_safetensors();
        let other = parameters("v", vec![0.25; length]).to_safetensors();
        let folder = tempfile::tempdir().unwrap();
        for (bytes, expected) in
            [(&bytes[..], 1.25), (&other[..], 1.0), (&bytes[..bytes.len() - 4], 1.0), (&[], 1.0)]
        {
            let path = folder.path().join("left");
            std::fs::write(&path, bytes).unwrap();
            let mut moved = parameters("w", vec![1.0; length]);
            let layout = Layout::of(&moved);
            add_left(&mut moved, File::open(&path).unwrap(), &layout).unwrap();
            assert_eq!(moved, parameters("w", vec![expected; length]));
        }
    }
}
