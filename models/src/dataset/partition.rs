//! Partitions of one data set over devices: who holds which example.
//!
//! Every example goes to exactly one device and no device stays without. The draws are seeded;
//! `Dirichlet` uses the platform's `ln` and `exp`, so another platform may place an example at a
//! boundary elsewhere: split once and hand out the indices.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::gunzip;
use super::order::{generator, shuffle};

mod dirichlet;

/// How examples are spread over devices.
#[derive(Debug, Clone, PartialEq)]
pub enum Partition {
    /// Shuffled and dealt out evenly; sizes differ by one at most.
    Iid,
    /// Sorted by class, cut into equal shards, each device gets this many at random
    /// (Source: McMahan 2017, section 3).
    Shards {
        /// Shards of one device, at least 1.
        per_device: usize,
    },
    /// Each class is spread by shares drawn from a symmetric Dirichlet distribution: the smaller
    /// `alpha`, the fewer classes a device sees (Source: Yurochkin 2019, section 4; Hsu 2019).
    Dirichlet {
        /// Above 0; 0.1 is strongly skewed, 100 nearly even.
        alpha: f64,
    },
    /// Index lists by device, made elsewhere.
    Indices(Vec<Vec<usize>>),
}

/// Examples that a device gets at least under [`Partition::Dirichlet`], fewer only when there
/// are fewer than this per device. As in FedML, which draws again until it holds; here the
/// largest holders give examples away, which also ends for strong skews.
pub const EXAMPLES_MIN: usize = 10;

/// Why a data set cannot be split so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PartitionError {
    /// Not one of the forms.
    #[error("partition {0:?}: expected iid, shards:<count> or dirichlet:<alpha above 0>")]
    Unknown(String),
    /// Not index lists.
    #[error(
        "not a partition: {0}; expected JSON such as {{\"train\": {{\"0\": [5, 2], \"1\": [7]}}}}"
    )]
    Json(String),
    /// More devices than examples or shards.
    #[error("{examples} examples cannot be split over {devices} devices ({needed} are needed)")]
    TooFew {
        /// Examples in the data set.
        examples: usize,
        /// Devices to split over.
        devices: usize,
        /// The smallest number that would do.
        needed: usize,
    },
    /// Lists for another number of devices.
    #[error("the partition has lists for {lists} devices, expected {devices}")]
    Devices {
        /// Lists given.
        lists: usize,
        /// Devices to split over.
        devices: usize,
    },
    /// A list names an example that is not there.
    #[error("list {list} has index {index}, the data set has {examples} examples")]
    Range {
        /// Counted from 0.
        list: usize,
        /// The index.
        index: usize,
        /// Examples in the data set.
        examples: usize,
    },
    /// An example is in no list or in two.
    #[error("example {index} is in {times} lists, expected 1")]
    Times {
        /// Which example.
        index: usize,
        /// 0, or 2 and more.
        times: usize,
    },
    /// A list without examples.
    #[error("list {list} is empty, every device needs an example")]
    EmptyList {
        /// Counted from 0.
        list: usize,
    },
}

impl Partition {
    /// Index lists from JSON, `{"train": {"0": [...], "1": [...]}}`, gzipped or not; lists are
    /// taken in the order of their numbers. Other members are left alone.
    ///
    /// # Errors
    /// [`PartitionError::Json`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, PartitionError> {
        #[derive(Deserialize)]
        struct Lists {
            train: BTreeMap<usize, Vec<usize>>,
        }
        let json = |error: &dyn fmt::Display| PartitionError::Json(error.to_string());
        let bytes =
            gunzip::unpacked("partition", bytes.into(), u64::MAX).map_err(|error| json(&error))?;
        let lists: Lists = serde_json::from_slice(&bytes).map_err(|error| json(&error))?;
        Ok(Self::Indices(lists.train.into_values().collect()))
    }

    /// Splits examples with these labels over `devices`: for each device the indices of its
    /// examples. The same arguments give the same lists.
    ///
    /// # Errors
    /// [`PartitionError`] when not every device would get an example, and for index lists that
    /// do not hold every example once.
    pub fn split(
        &self,
        labels: &[u32],
        devices: usize,
        seed: u64,
    ) -> Result<Vec<Vec<usize>>, PartitionError> {
        let parts = match self {
            Self::Iid | Self::Dirichlet { .. } => devices,
            Self::Shards { per_device } => devices.saturating_mul((*per_device).max(1)),
            Self::Indices(lists) => return check(lists, labels.len(), devices),
        };
        if devices == 0 || parts > labels.len() {
            let examples = labels.len();
            return Err(PartitionError::TooFew { examples, devices, needed: parts.max(1) });
        }
        let mut random = generator(seed, 0);
        let mut indices: Vec<usize> = (0..labels.len()).collect();
        Ok(match self {
            Self::Dirichlet { alpha } => dirichlet::split(labels, devices, *alpha, &mut random),
            Self::Shards { per_device } => {
                indices.sort_by_key(|index| labels[*index]);
                let mut shards: Vec<Vec<usize>> = cut(&indices, parts);
                shuffle(&mut shards, &mut random);
                shards.chunks((*per_device).max(1)).map(<[Vec<usize>]>::concat).collect()
            }
            Self::Iid | Self::Indices(_) => {
                shuffle(&mut indices, &mut random);
                cut(&indices, devices)
            }
        })
    }
}

/// Cuts into `parts` runs whose lengths differ by one at most.
fn cut(indices: &[usize], parts: usize) -> Vec<Vec<usize>> {
    let bound = |part: usize| part * indices.len() / parts;
    (0..parts).map(|part| indices[bound(part)..bound(part + 1)].to_vec()).collect()
}

/// Lists made elsewhere, if they hold every example once and leave no device without.
fn check(
    lists: &[Vec<usize>],
    examples: usize,
    devices: usize,
) -> Result<Vec<Vec<usize>>, PartitionError> {
    if lists.len() != devices {
        return Err(PartitionError::Devices { lists: lists.len(), devices });
    }
    let mut times = vec![0_usize; examples];
    for (list, indices) in lists.iter().enumerate() {
        if indices.is_empty() {
            return Err(PartitionError::EmptyList { list });
        }
        for &index in indices {
            match times.get_mut(index) {
                Some(times) => *times += 1,
                None => return Err(PartitionError::Range { list, index, examples }),
            }
        }
    }
    match times.iter().position(|times| *times != 1) {
        Some(index) => Err(PartitionError::Times { index, times: times[index] }),
        None => Ok(lists.to_vec()),
    }
}

impl FromStr for Partition {
    type Err = PartitionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || PartitionError::Unknown(text.to_owned());
        match text.split_once(':') {
            None if text == "iid" => Ok(Self::Iid),
            Some(("shards", count)) => match count.parse() {
                Ok(per_device) if per_device > 0 => Ok(Self::Shards { per_device }),
                _ => Err(unknown()),
            },
            Some(("dirichlet", alpha)) => match alpha.parse::<f64>() {
                Ok(alpha) if alpha > 0.0 && alpha.is_finite() => Ok(Self::Dirichlet { alpha }),
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("iid"),
            Self::Shards { per_device } => write!(f, "shards:{per_device}"),
            Self::Dirichlet { alpha } => write!(f, "dirichlet:{alpha}"),
            Self::Indices(lists) => write!(f, "indices of {} devices", lists.len()),
        }
    }
}

#[cfg(test)]
mod tests;
