//! Measurements that wait on disk for a connection: bounded, the oldest are dropped first.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use jobs::device::Telemetry;

/// Bytes of the file, at most; above it the older half is dropped.
const BYTES_MAX: u64 = 1024 * 1024;

/// A file of one JSON object per line.
#[derive(Debug)]
pub(crate) struct Buffer {
    path: PathBuf,
    bytes_max: u64,
}

impl Buffer {
    /// Uses what an agent before this one left behind.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, bytes_max: BYTES_MAX }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        std::fs::metadata(&self.path).map_or(0, |file| file.len()) == 0
    }

    /// Adds a measurement behind the others.
    pub(crate) fn push(&self, telemetry: &Telemetry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(telemetry)?;
        line.push(b'\n');
        if std::fs::metadata(&self.path).map_or(0, |file| file.len()) + line.len() as u64
            > self.bytes_max
        {
            let kept = self.all();
            self.replace(&kept[kept.len() / 2..])?;
        }
        let mut options = std::fs::File::options();
        let mut file = options.create(true).read(true).append(true).open(&self.path)?;
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(-1)).is_ok() {
            file.read_exact(&mut last)?;
        }
        if last != [b'\n'] {
            // A crash cut the last line off; behind it a new one begins.
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    }

    /// Everything that waits, the oldest first; a line that a crash cut off is skipped.
    pub(crate) fn all(&self) -> Vec<Telemetry> {
        let Ok(file) = std::fs::File::open(&self.path) else { return Vec::new() };
        BufReader::new(file)
            .split(b'\n')
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_slice(&line).ok())
            .collect()
    }

    /// Keeps only these.
    pub(crate) fn replace(&self, kept: &[Telemetry]) -> std::io::Result<()> {
        if kept.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let mut text = Vec::new();
        for telemetry in kept {
            serde_json::to_writer(&mut text, telemetry)?;
            text.push(b'\n');
        }
        crate::files::put(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use jobs::id::Millis;

    use super::*;

    fn at(at: u64) -> Telemetry {
        Telemetry { at: Millis(at), ..Telemetry::default() }
    }

    #[test]
    fn what_was_pushed_comes_back_in_order_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("telemetry.jsonl");
        let buffer = Buffer::new(path.clone());
        assert!(buffer.is_empty());
        for n in 0..3 {
            buffer.push(&at(n)).unwrap();
        }
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"at\":9,\"up").unwrap();
        let buffer = Buffer::new(path);
        assert_eq!(buffer.all(), [at(0), at(1), at(2)]);
        buffer.push(&at(3)).unwrap();
        assert_eq!(buffer.all(), [at(0), at(1), at(2), at(3)]);
        buffer.replace(&[at(2)]).unwrap();
        assert_eq!(buffer.all(), [at(2)]);
        buffer.replace(&[]).unwrap();
        assert!(buffer.is_empty());
        buffer.replace(&[]).unwrap();
    }

    #[test]
    fn the_oldest_are_dropped_at_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Buffer { path: dir.path().join("t"), bytes_max: 4000 };
        for n in 0..1000 {
            buffer.push(&at(n)).unwrap();
        }
        let kept = buffer.all();
        assert!(std::fs::metadata(&buffer.path).unwrap().len() <= 4000);
        assert_eq!(kept.last().unwrap().at, Millis(999));
        assert!(kept.len() > 4 && kept.windows(2).all(|pair| pair[0].at.0 + 1 == pair[1].at.0));
    }
}
