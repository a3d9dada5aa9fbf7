//! The programs of helpers: a file, or carried by this program and run from memory.

use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

mod embedded;

/// Names ONNX Runtime's library to a helper, which looks nowhere else then.
const LIBRARY: &str = "ORT_DYLIB_PATH";
/// Names the folder in which a helper looks for libraries first.
const LIBRARIES: &str = "DUNLIN_LIBRARIES";

/// Files of helpers that are looked for beside the agent.
pub(crate) const BESIDE: [&str; 2] = [Kind::Accel.name(), Kind::Tract.name()];

/// Which helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its engines load libraries and drivers.
    Accel,
    /// Its engine is the CPU's that takes the most models.
    Tract,
}

impl Kind {
    /// The file's name beside the agent.
    const fn name(self) -> &'static str {
        match self {
            Self::Accel => "dunlin-accel",
            Self::Tract => "dunlin-tract",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::Accel => "--accel",
            Self::Tract => "--tract",
        }
    }

    /// What this program carries of it, compressed by xz; the build names the file.
    const fn inside(self) -> Option<&'static [u8]> {
        match self {
            #[cfg(feature = "embedded-accel")]
            Self::Accel => Some(include_bytes!(env!("DUNLIN_ACCEL_PROGRAM"))),
            #[cfg(not(feature = "embedded-accel"))]
            Self::Accel => None,
            #[cfg(feature = "embedded-tract")]
            Self::Tract => Some(include_bytes!(env!("DUNLIN_TRACT_PROGRAM"))),
            #[cfg(not(feature = "embedded-tract"))]
            Self::Tract => None,
        }
    }
}

/// Where a helper's program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A file.
    File(PathBuf),
    /// Inside of this program.
    Inside {
        /// The file's name, if it were one.
        name: &'static str,
        /// The program, compressed by xz: a part of this program's file, which is in memory only while
        /// it is read.
        compressed: &'static [u8],
        /// A folder of this agent alone, for systems that do not run it from memory.
        scratch: Option<PathBuf>,
    },
    /// Another one that is told where ONNX Runtime's library is.
    Told {
        /// The one that is told.
        program: Box<Program>,
        /// The library, or its folder.
        onnxruntime: PathBuf,
    },
}

impl Program {
    /// The one that is `named`, else the one beside this program, else the one inside.
    ///
    /// # Errors
    /// Why there is none that this system can run, and what to do.
    pub fn find(
        kind: Kind,
        named: Option<&Path>,
        scratch: Option<&Path>,
    ) -> std::result::Result<Self, String> {
        let name = kind.name();
        let beside = std::env::current_exe().ok().map(|own| own.with_file_name(name));
        let program = match (named, beside, kind.inside()) {
            (Some(path), ..) => Self::File(path.to_owned()),
            (None, Some(path), _) if path.is_file() => Self::File(path),
            (None, _, Some(compressed)) => {
                Self::Inside { name, compressed, scratch: scratch.map(Path::to_owned) }
            }
            (None, _, None) => {
                return Err(format!(
                    "no helper: copy {name} beside the agent, name it with {}, or use an agent \
                     that has it inside",
                    kind.option()
                ));
            }
        };
        match program.check() {
            Ok(()) => Ok(program),
            Err(reason) => {
                if named.is_some() {
                    tracing::warn!("{} is of no use: {reason}", kind.option());
                }
                Err(reason)
            }
        }
    }

    /// The same, told where ONNX Runtime's library, or its folder, is.
    pub(super) fn told(self, onnxruntime: Option<&Path>) -> Self {
        match onnxruntime {
            Some(path) => Self::Told { program: self.into(), onnxruntime: path.to_owned() },
            None => self,
        }
    }

    /// Starts it by what makes a process of its command, which may be called again for another one.
    ///
    /// # Errors
    /// When it cannot be started, nor brought into memory or into a file.
    pub(super) fn start<T>(&self, mut start: impl FnMut(&mut Command) -> Result<T>) -> Result<T> {
        self.start_by(&mut start)
    }

    fn start_by<T>(&self, start: &mut dyn FnMut(&mut Command) -> Result<T>) -> Result<T> {
        match self {
            Self::File(path) => start(&mut Command::new(path)),
            Self::Inside { name, compressed, scratch } => {
                let started = embedded::start((name, compressed), scratch.as_deref(), start);
                embedded::released(compressed, started)
            }
            Self::Told { program, onnxruntime } => program.start_by(&mut |command| {
                if onnxruntime.is_dir() {
                    command.env_remove(LIBRARY).env(LIBRARIES, onnxruntime);
                } else {
                    command.env(LIBRARY, onnxruntime);
                }
                start(command)
            }),
        }
    }

    /// Changes when the program does.
    pub(super) fn stamp(&self) -> String {
        match self {
            Self::File(path) => stamp(path),
            Self::Inside { compressed, .. } => {
                embedded::released(compressed, embedded::stamp(compressed))
            }
            Self::Told { program, onnxruntime } => {
                format!("{} {}", program.stamp(), onnxruntime.display())
            }
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (what, start) = match self {
            Self::File(path) => (path.display().to_string(), start_of(path)),
            Self::Inside { name, compressed, .. } => {
                let start = embedded::beginning(compressed);
                (format!("the {name} inside"), embedded::released(compressed, start))
            }
            Self::Told { program, .. } => return program.check(),
        };
        let start = start.map_err(|error| format!("{what}: {error}"))?;
        match loader(&start) {
            Some(loader) if !Path::new(&loader).exists() => Err(format!(
                "{what} needs glibc, whose loader {loader} this system lacks: it works with the \
                 engines inside of the agent only"
            )),
            _ => Ok(()),
        }
    }
}

/// Length and time of change of a file; says so where it is absent.
pub(super) fn stamp(path: &Path) -> String {
    let stamp = std::fs::metadata(path).and_then(|data| Ok((data.len(), data.modified()?)));
    match stamp {
        Ok((len, changed)) => format!("{} {len} {changed:?}", path.display()),
        Err(_) => format!("{} absent", path.display()),
    }
}

/// The beginning of a file: program headers come first.
fn start_of(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(4096).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::InvalidData, "the file is empty"));
    }
    Ok(bytes)
}

/// The loader that a 64-bit ELF program asks for (`PT_INTERP`): where it is missing, starting the
/// program fails as if the program itself were.
fn loader(elf: &[u8]) -> Option<String> {
    const INTERPRETER: u64 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(elf.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let offset = |at: usize| usize::try_from(number(at, 8)?).ok();
    // 64 bits, little-endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (headers, size, count) = (offset(32)?, number(54, 2)?, number(56, 2)?);
    let header = |index: u64| headers.checked_add(usize::try_from(index * size).ok()?);
    let found = (0..count).filter_map(header).find(|at| number(*at, 4) == Some(INTERPRETER))?;
    let (from, len) = (offset(found.checked_add(8)?)?, offset(found.checked_add(32)?)?);
    let text = elf.get(from..from.checked_add(len)?)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a mapping of a file that are in this process's memory.
    fn resident(mapped: &[u8]) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| {
            let begin = line.split('-').next().unwrap();
            u64::from_str_radix(begin, 16).ok() != Some(mapped.as_ptr() as u64)
        });
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    #[expect(unsafe_code, reason = "a file that nobody changes is mapped")]
    fn a_program_inside_is_in_no_memory_until_it_is_started() {
        let mut file = tempfile::tempfile().unwrap();
        let mut compressed = embedded::testing::packed(&[7; 10_000], 1 << 16);
        compressed.resize(16 << 20, 1);
        std::io::Write::write_all(&mut file, &compressed).unwrap();
        // SAFETY: nobody else has the file.
        let mapped = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mapped: &'static memmap2::Mmap = Box::leak(mapped.into());
        let program = Program::Inside { name: "it", compressed: mapped, scratch: None };
        let edges = 2 << 16;
        program.check().unwrap();
        assert!(resident(mapped) <= edges, "{}", resident(mapped));
        assert!(program.stamp().len() < 300);
        assert!(resident(mapped) <= edges, "{}", resident(mapped));
        // What follows the end of a program is none.
        let read = mapped.iter().fold(0_u8, |sum, byte| sum ^ byte);
        assert!(resident(mapped) > 8 << 20, "{read}: it counts");
        assert!(program.start(Command::status).is_err());
        assert!(resident(mapped) <= edges, "{}", resident(mapped));
    }

    #[test]
    fn another_program_inside_has_another_stamp() {
        let stamp = |program: &[u8]| embedded::stamp(&embedded::testing::packed(program, 1 << 16));
        let mut program = vec![7; 10_000];
        let first = stamp(&program);
        assert_eq!(stamp(&program), first);
        program[5000] ^= 1;
        assert_ne!(stamp(&program), first, "one bit");
        assert_ne!(stamp(&program[1..]), first);
        assert_eq!(embedded::stamp(&[]), "0 ");
    }

    #[test]
    fn a_loader_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("helper");
        let find = || Program::find(Kind::Accel, Some(&path), None);
        let error = find().unwrap_err();
        assert!(error.contains("helper: No such file"), "{error}");
        let own = start_of(Path::new("/proc/self/exe")).unwrap();
        if let Some(loader) = loader(&own) {
            assert!(Path::new(&loader).exists(), "{loader}");
            std::fs::write(&path, &own).unwrap();
            assert_eq!(find(), Ok(Program::File(path.clone())));
            let at = own.windows(loader.len()).position(|part| part == loader.as_bytes()).unwrap();
            let mut foreign = own.clone();
            foreign[at + 1] = b'X';
            std::fs::write(&path, &foreign).unwrap();
            let error = find().unwrap_err();
            assert!(error.contains("needs glibc, whose loader /X"), "{error}");
        }
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(find(), Ok(Program::File(path.clone())), "a script needs none");
        std::fs::write(&path, "").unwrap();
        assert!(find().unwrap_err().contains("empty"));
        for len in 0..own.len() {
            loader(&own[..len]);
        }
    }
}
