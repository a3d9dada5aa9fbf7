//! Which blobs that devices store in a round are on its list: bounded for each device and in all, so
//! that the list can be stored with the training whatever devices report.

use std::collections::{BTreeMap, BTreeSet};

use jobs::id::{BlobRef, DeviceId};

/// Blobs of a device, at most: each of its ten attempts has two, or four with masks.
const OF_DEVICE_MAX: usize = 64;
/// Bytes of a blob's name, at most: those that agents give have half of it.
const NAME_MAX: usize = 256;
/// Bytes of the list, about, beyond which only the next bound counts.
const BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a device of the round that are listed however long the list is: four blobs, of 1,000
/// devices.
const OF_DEVICE_ALWAYS: usize = 1280;
/// Bytes of an entry without its name.
const ENTRY: usize = 160;

/// What is on a round's list.
#[derive(Debug, Default)]
pub(super) struct Listed {
    names: BTreeSet<String>,
    /// Blobs of each device, and their bytes on the list.
    devices: BTreeMap<DeviceId, (usize, usize)>,
    bytes: usize,
}

/// Why a blob is not put on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unlisted {
    #[error("a blob's name of {0} bytes: expected {NAME_MAX} at most")]
    Name(usize),
    #[error("more than {OF_DEVICE_MAX} blobs of this device in one round")]
    Many,
    #[error("the round's list of blobs is full, and this device has more than others on it")]
    Full,
}

impl Listed {
    /// A list as it was stored; whose blobs these are is not known.
    pub(super) fn of(blobs: &[BlobRef]) -> Self {
        let names: BTreeSet<String> = blobs.iter().map(|it| it.object_name().to_owned()).collect();
        let bytes = names.iter().map(|name| name.len() + ENTRY).sum();
        Self { names, devices: BTreeMap::new(), bytes }
    }

    /// Puts a device's blob on the list; whether it is new there. Who is `known` in the round has room
    /// whatever others report.
    pub(super) fn add(
        &mut self,
        device: &DeviceId,
        known: bool,
        blob: &BlobRef,
    ) -> Result<bool, Unlisted> {
        let name = blob.object_name();
        if name.len() > NAME_MAX {
            return Err(Unlisted::Name(name.len()));
        }
        if self.names.contains(name) {
            return Ok(false);
        }
        let bytes = name.len() + ENTRY;
        let (count, own) = self.devices.get(device).copied().unwrap_or_default();
        if count >= OF_DEVICE_MAX {
            return Err(Unlisted::Many);
        }
        let always = known && own + bytes <= OF_DEVICE_ALWAYS;
        if self.bytes + bytes > BYTES_MAX && !always {
            return Err(Unlisted::Full);
        }
        self.devices.insert(device.clone(), (count + 1, own + bytes));
        self.bytes += bytes;
        self.names.insert(name.to_owned());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::Bytes;

    use super::*;

    fn blob(name: String) -> BlobRef {
        let digest = link::digest::of(b"");
        BlobRef { name: Some(name), ..BlobRef::by_digest(digest, Bytes(0)) }
    }

    fn device(number: usize) -> DeviceId {
        format!("{number:04}-{}", "d".repeat(59)).parse().unwrap()
    }

    /// As agents name them, where names are as long as they can be.
    fn named(device: &DeviceId, number: usize) -> BlobRef {
        blob(format!("update/01hzy0000000000000000000zz/10000/{device}/{number}/control"))
    }

    #[test]
    fn a_device_has_so_many_blobs_and_no_more() {
        let (mut listed, one, other) = (Listed::default(), device(1), device(2));
        for number in 0..OF_DEVICE_MAX {
            assert_eq!(listed.add(&one, true, &named(&one, number)), Ok(true));
            assert_eq!(listed.add(&one, true, &named(&one, number)), Ok(false));
        }
        assert_eq!(listed.add(&one, true, &named(&one, OF_DEVICE_MAX)), Err(Unlisted::Many));
        assert_eq!(listed.add(&other, false, &named(&other, 0)), Ok(true));
        let long = blob(format!("update/{}", "x".repeat(NAME_MAX)));
        assert_eq!(listed.add(&other, true, &long), Err(Unlisted::Name(NAME_MAX + 7)));
        // After a restart what is there is there still.
        let mut again = Listed::of(&[named(&one, 0), named(&one, 0), named(&other, 0)]);
        assert_eq!(again.add(&one, true, &named(&one, 0)), Ok(false));
        assert_eq!(again.bytes, 2 * (named(&one, 0).object_name().len() + ENTRY));
    }

    #[test]
    fn however_many_devices_report_all_they_can_the_others_are_listed() {
        let mut listed = Listed::default();
        for number in 0..900 {
            let (device, mut refused) = (device(number), None);
            for blob in 0..100 {
                let known = number % 2 == 0;
                refused = listed.add(&device, known, &named(&device, blob)).err().or(refused);
            }
            assert!(matches!(refused, Some(Unlisted::Many | Unlisted::Full)));
        }
        for device in (900..1000).map(device) {
            for number in 0..4 {
                assert_eq!(listed.add(&device, true, &named(&device, number)), Ok(true));
            }
        }
        assert!(listed.bytes <= BYTES_MAX + 1000 * OF_DEVICE_ALWAYS, "{}", listed.bytes);
        let stranger = device(2000);
        assert_eq!(listed.add(&stranger, false, &named(&stranger, 0)), Err(Unlisted::Full));
        let entry = serde_json::to_string(&named(&device(1), 1)).unwrap();
        assert!(entry.len() <= named(&device(1), 1).object_name().len() + ENTRY, "{entry}");
    }
}
