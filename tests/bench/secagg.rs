//! What secure aggregation costs a device and the server, processor time and bytes, and whether the
//! sum that is unmasked is the plain sum.
//!
//! The messages of every device are made and read, of all stages. Vectors are those of one device
//! and one sum; where all masks of a vector would take minutes they are timed on a part of it,
//! which costs what any other part does.

use std::hint::black_box;
use std::time::Duration;

use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use secagg::{Client, Masks, PIECE, Party, Quantisation, Risk, Rounding, Secret, Server, Topology};
use serde::Serialize;

use crate::draws::Draws;
use crate::figures::{against_bar, heading};

/// What is measured of secure aggregation.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// secagg: devices
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "10,100,1000")]
    devices: Vec<usize>,
    /// secagg: sizes of the model, of floats of 4 bytes
    #[arg(long, value_name = "MB", value_delimiter = ',', default_value = "1,25")]
    megabytes: Vec<usize>,
    /// secagg: percentages of devices that drop out after they gave shares
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "0,30")]
    drop_outs: Vec<usize>,
}

/// Up to how many devices everyone is also everyone's neighbour.
const COMPLETE_MAX: usize = 100;
/// Values of each vector whose sum is compared: pieces, and a part of one.
const COMPARED: usize = 2 * PIECE + 1000;
/// A device says that it has so many examples at most.
const WEIGHT_MAX: u16 = 8;
/// Values of masks that are computed for one figure, about.
const TIMED: usize = 1_000_000_000;

pub(crate) fn measure(options: &Options) {
    heading("secure aggregation: processor seconds, one thread; MB up and down of each device");
    println!(
        "  {:>7} {:>4} {:>8}  {:<8} {:>5} {:>5}  {:>9} {:>8} {:>8}  {:>9} {:>9} {:>9}",
        "DEVICES",
        "MB",
        "DROP-OUT",
        "GRAPH",
        "K",
        "T",
        "DEVICE s",
        "UP",
        "DOWN",
        "SERVER s",
        "IN",
        "OUT"
    );
    let mut exact = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        for &devices in &options.devices {
            let risk = Risk::default();
            let mut graphs = vec![("SecAgg+", Topology::of(devices, risk).unwrap())];
            if devices <= COMPLETE_MAX {
                let complete = Topology::complete(devices, risk).unwrap();
                // The same where few devices need all neighbours.
                graphs.retain(|(_, sparse)| *sparse != complete);
                graphs.push(("SecAgg", complete));
            }
            for (name, topology) in graphs {
                for &percent in &options.drop_outs {
                    let session = Session::run(devices, topology, devices * percent / 100);
                    for &megabytes in &options.megabytes {
                        session.show(name, percent, megabytes);
                    }
                    let what = format!("{devices} devices, {name}, {percent} % drop-outs");
                    exact.push((what, session.wrong()));
                }
            }
        }
    });
    heading(&format!("the unmasked sum of {COMPARED} random values and the plain sum of levels"));
    for (what, wrong) in exact {
        let found = if wrong == 0 { "equal".to_owned() } else { format!("{wrong} differ") };
        against_bar(&what, &found, "equal", wrong == 0);
    }
}

/// All messages of a session, as they were.
struct Session {
    devices: usize,
    topology: Topology,
    /// Processor time of one device, without its vector.
    device: Duration,
    /// Of the server, without vectors.
    server: Duration,
    /// Bytes of messages, of one device.
    up: usize,
    down: usize,
    /// The masks of each device that did not drop out.
    masks: Vec<Masks>,
    /// What the server takes off the sum.
    unmask: Masks,
}

/// Who uses the processor, in turn.
#[derive(Default)]
struct Spent {
    devices: Duration,
    server: Duration,
    up: usize,
    down: usize,
}

impl Spent {
    fn device<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, time) = timed(work);
        self.devices += time;
        done
    }

    fn server<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, time) = timed(work);
        self.server += time;
        done
    }

    fn sent(&mut self, message: &impl Serialize) {
        self.up += serde_json::to_vec(message).unwrap().len();
    }

    fn received(&mut self, message: &impl Serialize) {
        self.down += serde_json::to_vec(message).unwrap().len();
    }
}

impl Session {
    fn run(devices: usize, topology: Topology, dropped: usize) -> Self {
        let mut spent = Spent::default();
        let all: Vec<Party> = (0..u32::try_from(devices).unwrap()).map(Party).collect();
        let mut server = Server::new("bench".to_owned(), 1, Risk::default());
        let mut clients = Vec::new();
        for party in &all {
            let mut seed = [1; 32];
            seed[..4].copy_from_slice(&party.0.to_le_bytes());
            let client = spent.device(|| Client::new(Secret::new(seed)));
            let keys = spent.device(|| client.keys());
            spent.sent(&keys);
            spent.server(|| server.keys(party.0, keys)).unwrap();
            clients.push(client);
        }
        let roster = spent.server(|| server.close_keys_with(topology).cloned()).unwrap();
        for (party, client) in all.iter().zip(&mut clients) {
            spent.received(&roster);
            let shares = spent.device(|| client.share(&roster)).unwrap();
            spent.sent(&shares);
            spent.server(|| server.shares(*party, &shares)).unwrap();
        }
        spent.server(|| server.close_shares()).unwrap();
        // Every few devices drop out, so that the ring has no gap.
        let is_lost = |party: &Party| {
            (party.0 as usize + 1) * dropped / devices > party.0 as usize * dropped / devices
        };
        let survivors: Vec<Party> = all.iter().copied().filter(|it| !is_lost(it)).collect();
        let mut masks = Vec::new();
        for party in &survivors {
            let inbox = spent.server(|| server.inbox(*party)).unwrap();
            spent.received(&inbox);
            let client = &mut clients[party.0 as usize];
            masks.push(spent.device(|| client.mask(&inbox)).unwrap());
            spent.server(|| server.masked(*party)).unwrap();
        }
        spent.server(|| server.close_masked()).unwrap();
        for party in &survivors {
            let request = spent.server(|| server.unmask_request(*party)).unwrap();
            spent.received(&request);
            let client = &mut clients[party.0 as usize];
            let unmasking = spent.device(|| client.unmask(&request)).unwrap();
            spent.sent(&unmasking);
            spent.server(|| server.unmasking(*party, &unmasking)).unwrap();
        }
        let unmask = spent.server(|| server.finish()).unwrap();
        let each = u32::try_from(devices).unwrap();
        Self {
            devices,
            topology,
            device: spent.devices / each,
            server: spent.server,
            up: spent.up / devices,
            down: spent.down / devices,
            masks,
            unmask,
        }
    }

    /// Masks random vectors of random weights for each survivor, adds them and unmasks the sum; how
    /// many of its values are others than those of the plain sum of the same levels.
    fn wrong(&self) -> usize {
        let count = u32::try_from(self.devices).unwrap();
        let quantisation = Quantisation::new(1.0, count, WEIGHT_MAX.into()).unwrap();
        let mut draws = Draws::new(count.into());
        let (mut unmasked, mut plain) = (vec![0_u32; COMPARED], vec![0_u64; COMPARED]);
        for masks in &self.masks {
            // Some are beyond the clip.
            let values: Vec<f32> = (0..COMPARED).map(|_| 2.2 * draws.uniform() - 1.1).collect();
            let (weight, mut levels) = (1 + draws.bits() % WEIGHT_MAX, Vec::new());
            let rounding = Rounding::Nearest;
            quantisation.encode(0, &values, weight.into(), &rounding, &mut levels).unwrap();
            plain.iter_mut().zip(&levels).for_each(|(sum, level)| *sum += u64::from(*level));
            masks.apply(0, &mut levels);
            secagg::add(&mut unmasked, &levels);
        }
        self.unmask.apply(0, &mut unmasked);
        let pairs = unmasked.iter().zip(&plain);
        pairs.filter(|(unmasked, plain)| u64::from(**unmasked) != **plain).count()
    }

    #[expect(clippy::cast_precision_loss, reason = "megabytes are shown")]
    fn show(&self, name: &str, percent: usize, megabytes: usize) {
        let length = megabytes * 1_000_000 / 4;
        let count = u32::try_from(self.devices).unwrap();
        let quantisation = Quantisation::new(1.0, count, 1).unwrap();
        let values: Vec<f32> =
            (0_u16..=9999).cycle().map(|it| f32::from(it) / 1e4).take(length).collect();
        let mut vector = Vec::with_capacity(length);
        let (_, encoding) =
            timed(|| quantisation.encode(0, &values, 1, &Rounding::Nearest, &mut vector).unwrap());
        let device = self.device + encoding + applied(&self.masks[0], &mut vector);
        // Not zeros, which would be pages that are not there yet.
        let mut sum = vec![1; length];
        let ((), one) = timed(|| secagg::add(&mut sum, &vector));
        let adding = one * u32::try_from(self.masks.len()).unwrap();
        let unmasking = applied(&self.unmask, &mut sum);
        let (_, decoding) =
            timed(|| black_box(sum.iter().map(|sum| quantisation.mean(*sum, count)).sum::<f64>()));
        let server = self.server + adding + unmasking + decoding;
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let (up, down) = (self.up + 4 * (length + 1), self.down);
        println!(
            "  {:>7} {megabytes:>4} {:>8}  {name:<8} {:>5} {:>5}  {:>9.3} {:>8.3} {:>8.3}  {:>9.2} \
             {:>9.1} {:>9.1}",
            self.devices,
            format!("{percent} %"),
            self.topology.degree,
            self.topology.threshold,
            device.as_secs_f64(),
            mb(up),
            mb(down),
            server.as_secs_f64(),
            mb(self.up * self.devices + 4 * (length + 1) * self.masks.len()),
            mb(down * self.devices),
        );
    }
}

/// Processor time of these masks on a whole vector.
fn applied(masks: &Masks, vector: &mut [u32]) -> Duration {
    let length = vector.len();
    let part = (TIMED / masks.len()).clamp(16 * PIECE, length.max(16 * PIECE)).min(length);
    let ((), time) = timed(|| masks.apply(0, &mut vector[..part]));
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let whole = time.mul_f64(length as f64 / part as f64);
    whole
}

/// With the processor time of the whole process that it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        let at = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(at.tv_sec.try_into().unwrap(), at.tv_nsec.try_into().unwrap())
    };
    let before = now();
    let done = work();
    (done, now().saturating_sub(before))
}
