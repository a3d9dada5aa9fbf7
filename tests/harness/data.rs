//! Data sets for devices, and pictures to ask with.

use std::path::{Path, PathBuf};
use std::process::Command;

use models::dataset::{Dataset, Examples, Limits, decode, idx};

use crate::process::program;

/// The handwritten digits, split by `dunlin data digits`.
#[derive(Debug)]
pub struct Digits {
    folder: PathBuf,
}

impl Digits {
    /// Writes shares for devices, Dirichlet(0.5), and 360 held-out pictures.
    pub fn write(folder: &Path, devices: usize) -> Self {
        Self::write_as(folder, devices, "dirichlet:0.5")
    }

    /// The same in another partition.
    pub fn write_as(folder: &Path, devices: usize, partition: &str) -> Self {
        let folder = folder.join("digits");
        let mut command = Command::new(program("dunlin"));
        command.args(["data", "digits", "--held-out", "360", "--partition", partition]);
        command.arg("--out").arg(&folder).args(["--devices", &devices.to_string()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self { folder }
    }

    /// The folder of a device's share, from 1.
    pub fn share(&self, device: usize) -> PathBuf {
        self.folder.join(format!("device-{device}"))
    }

    /// Pictures that no device has, with their classes.
    pub fn held_out(&self) -> Vec<(PathBuf, u32)> {
        let entries = std::fs::read_dir(self.folder.join("held-out")).unwrap();
        let mut found: Vec<(PathBuf, u32)> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                let class = name.rsplit('-').next().unwrap().parse().unwrap();
                (path, class)
            })
            .collect();
        found.sort();
        found
    }
}

/// The data set in a folder.
pub fn read(folder: &Path) -> Dataset {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
    });
    let mut files: Vec<(String, Vec<u8>)> = files.collect();
    files.sort();
    decode(&files, Limits::default()).unwrap()
}

/// Eight black pictures, so many pixels across and down; `mlp` has 64 weights for each pixel.
pub fn write_blank(folder: &Path, side: u16) {
    write_grey(folder, side, 0, 8);
}

/// Eight pictures of one shade to train on, so many pixels across and down, and some to be judged by.
pub fn write_grey(folder: &Path, side: u16, grey: u8, judged: usize) {
    std::fs::create_dir(folder).unwrap();
    let pixels = usize::from(side) * usize::from(side);
    let shape = [1, side.into(), side.into()];
    for (split, count) in [("train", 8), ("t10k", judged)] {
        let classes = (0..8).cycle().take(count).collect();
        let examples = Examples::pictures(shape, vec![grey; count * pixels], classes);
        let (images, labels) = idx::encode(&examples).unwrap();
        std::fs::write(folder.join(format!("{split}-images-idx3-ubyte")), &images).unwrap();
        std::fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), &labels).unwrap();
    }
}

/// A file of real data beside the workspace; `None`, said so, where it is absent.
#[expect(clippy::print_stderr, reason = "a test that measures less says so")]
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("absent, not tested: {}", path.display());
    None
}
