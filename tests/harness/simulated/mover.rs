//! A device whose training moves each value a little, as if at random.

use jobs::spec::{Int8, TrainTask, UpdateEncoding};
use models::federated::encoding::{Coder, Encoder, Format, Header, layout_digest};
use models::params::{Layout, append_le_bytes, from_le_bytes};

/// Values after which the movements come again: more than a frame of an encoding has.
const PERIOD: usize = 1 << 16;

/// The update of a device that got these parameters: plain, or differences of 8 bits where the task
/// says so.
pub(super) fn moved(received: &[u8], work: &TrainTask, seed: u64) -> Vec<u8> {
    let (layout, movements) = (Layout::of_whole(received).unwrap(), movements(seed));
    let before = from_le_bytes(&received[layout.data_start()..]);
    let after: Vec<f32> =
        before.iter().zip(movements.iter().cycle()).map(|(before, by)| before + by).collect();
    let UpdateEncoding::Int8(Int8 { block, .. }) = work.update else {
        let mut file = received[..layout.data_start()].to_vec();
        append_le_bytes(&after, &mut file);
        return file;
    };
    let header = Header {
        format: Format::Int8 { block: block as usize },
        coder: Coder::Rans,
        sparse: false,
        values: layout.total_len(),
        layout: layout_digest(&layout),
        base: Some(work.parameters.digest.to_string()),
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, seed, &mut file);
    for (before, after) in before.chunks(PERIOD).zip(after.chunks(PERIOD)) {
        let differences: Vec<f32> =
            before.iter().zip(after).map(|(it, after)| after - it).collect();
        encoder.push(&differences, &mut file).unwrap();
    }
    encoder.finish(&mut file).unwrap();
    file
}

/// Numbers around 0, nearly normal.
fn movements(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 65_536.0
    };
    (0..PERIOD).map(|_| 1e-3 * ((0..6).map(|_| uniform()).sum::<f32>() - 3.0)).collect()
}
