//! How updates travel from devices to the broker.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::is_default;
use super::settings::text_or_table;

/// How the update of a device is written. Whatever an agent sends says itself how it is written,
/// so that one which does not know encodings takes part by [`UpdateEncoding::Plain`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "encoding", rename_all = "lowercase", deny_unknown_fields, remote = "Self")]
pub enum UpdateEncoding {
    /// The parameters after training, as safetensors of 32-bit floats.
    Plain {},
    /// 32-bit floats, compressed without loss.
    Float32(Exact),
    /// IEEE 754's 16-bit floats.
    Float16(Rounded),
    /// The upper halves of 32-bit floats.
    BFloat16(Rounded),
    /// 8-bit integers with a scale for each block, rounded at random with the right expectation
    /// (QSGD, Alistarh et al. 2017).
    Int8(Int8),
    /// The largest differences; the device keeps the rest for its next update (Stich et al. 2018).
    TopK(TopK),
}

text_or_table!(
    UpdateEncoding,
    "an encoding such as \"int8\" or \"topk:share=0.01\", or a table such as {\"encoding\": \"topk\", \
     \"share\": 0.01}",
    UpdateEncoding::deserialize
);

impl Default for UpdateEncoding {
    fn default() -> Self {
        Self::Plain {}
    }
}

impl UpdateEncoding {
    /// Whether differences from the round's parameters are sent in place of parameters.
    pub fn is_difference(&self) -> bool {
        match *self {
            Self::Plain {} => false,
            Self::Float32(Exact { delta, .. })
            | Self::Float16(Rounded { delta, .. })
            | Self::BFloat16(Rounded { delta, .. })
            | Self::Int8(Int8 { delta, .. }) => delta,
            Self::TopK(_) => true,
        }
    }

    /// What codes the bytes of values; nothing where parameters are plain.
    pub fn coder(&self) -> Option<Coder> {
        match *self {
            Self::Plain {} => None,
            Self::Float32(Exact { coder, .. })
            | Self::Float16(Rounded { coder, .. })
            | Self::BFloat16(Rounded { coder, .. })
            | Self::Int8(Int8 { coder, .. })
            | Self::TopK(TopK { coder, .. }) => Some(coder),
        }
    }

    /// Settings that are out of range: the name, the value, what is accepted.
    pub(super) fn problems(&self) -> Vec<(&'static str, f64, &'static str)> {
        let (share, block) = match *self {
            Self::Plain {} | Self::Float32(_) | Self::Float16(_) | Self::BFloat16(_) => {
                return Vec::new();
            }
            Self::Int8(Int8 { block, .. }) => (None, block),
            Self::TopK(TopK { share, block, .. }) => (Some(share), block),
        };
        let mut problems = Vec::new();
        if let Some(share) = share.filter(|share| !(*share > 0.0 && *share <= 0.5)) {
            problems.push(("share", share, "above 0, at most 0.5"));
        }
        if !(256..=4096).contains(&block) {
            problems.push(("block", block.into(), "256 to 4096"));
        }
        problems
    }
}

/// What codes the bytes of values, after they were rounded and taken apart into planes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coder {
    /// An entropy coder alone: asymmetric numeral systems (Duda 2013).
    #[default]
    Rans,
    /// Zstandard (RFC 8878), which sees repetitions too.
    Zstd,
}

/// Without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exact {
    /// Differences from the round's parameters in place of parameters: a little shorter, and
    /// rounded once more.
    pub delta: bool,
    /// What codes the bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub coder: Coder,
}

/// With fewer bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounded {
    /// Differences from the round's parameters in place of parameters.
    pub delta: bool,
    /// What codes the bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub coder: Coder,
}

impl Default for Rounded {
    fn default() -> Self {
        Self { delta: true, coder: Coder::default() }
    }
}

/// Values that share a scale, where nothing else is said.
const BLOCK: u32 = 1024;

/// With a scale for each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Int8 {
    /// Differences from the round's parameters in place of parameters.
    pub delta: bool,
    /// Values that share a scale, 256 to 4096.
    pub block: u32,
    /// What codes the bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub coder: Coder,
}

impl Default for Int8 {
    fn default() -> Self {
        Self { delta: true, block: BLOCK, coder: Coder::default() }
    }
}

/// Some differences only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopK {
    /// Share of the values that is sent, above 0, at most a half.
    pub share: f64,
    /// How they are written.
    pub values: ValueFormat,
    /// Values that share a scale, with `int8`; 256 to 4096.
    pub block: u32,
    /// What codes the bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub coder: Coder,
}

impl Default for TopK {
    fn default() -> Self {
        let (values, coder) = (ValueFormat::BFloat16, Coder::default());
        Self { share: 0.01, values, block: BLOCK, coder }
    }
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as the encodings of the same names")]
pub enum ValueFormat {
    Float32,
    Float16,
    BFloat16,
    Int8,
}

/// Text that is no encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no encoding of updates: {reason}; expected plain, float32, float16, bfloat16, int8 \
     or topk, with settings such as int8:block=1024, topk:share=0.01,values=int8 or float16:coder=zstd"
)]
pub struct UpdateEncodingError {
    text: String,
    reason: String,
}

/// As the command line takes it.
impl fmt::Display for UpdateEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else {
            return Err(fmt::Error);
        };
        let name = fields.remove("encoding");
        f.write_str(name.as_ref().and_then(Value::as_str).unwrap_or_default())?;
        for (index, (name, value)) in fields.iter().enumerate() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            write!(f, "{}{name}={value}", if index == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for UpdateEncoding {
    type Err = UpdateEncodingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: String| UpdateEncodingError { text: text.to_owned(), reason };
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let mut fields = Map::new();
        for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
            let (name, value) =
                setting.split_once('=').ok_or_else(|| fail(format!("{setting:?} has no value")))?;
            // Numbers, true and false are as in JSON; what is none is a word.
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            if fields.insert(name.to_owned(), value).is_some() {
                return Err(fail(format!("{name} is there twice")));
            }
        }
        fields.insert("encoding".to_owned(), name.into());
        serde_json::from_value(fields.into()).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        for (text, json, difference) in [
            ("plain", r#"{"encoding":"plain"}"#, false),
            ("float32:delta=false", r#"{"encoding":"float32"}"#, false),
            ("float32:delta=true", r#"{"encoding":"float32","delta":true}"#, true),
            ("float16:delta=true", r#"{"encoding":"float16"}"#, true),
            ("bfloat16:delta=false", r#"{"encoding":"bfloat16","delta":false}"#, false),
            ("int8:block=1024,delta=true", r#"{"encoding":"int8"}"#, true),
            ("topk:block=1024,share=0.01,values=bfloat16", r#"{"encoding":"topk"}"#, true),
            (
                "topk:block=256,share=0.5,values=int8",
                r#"{"encoding":"topk","values":"int8","share":0.5,"block":256}"#,
                true,
            ),
            ("bfloat16:coder=zstd,delta=true", r#"{"encoding":"bfloat16","coder":"zstd"}"#, true),
            ("float32:delta=false", r#"{"encoding":"float32","coder":"rans"}"#, false),
        ] {
            let encoding: UpdateEncoding = text.parse().unwrap();
            assert_eq!(serde_json::from_str::<UpdateEncoding>(json).unwrap(), encoding);
            let written = serde_json::to_string(&encoding).unwrap();
            assert_eq!(serde_json::from_str::<UpdateEncoding>(&written).unwrap(), encoding);
            let mut words: Vec<String> = text.split([':', ',']).map(str::to_owned).collect();
            let shown = encoding.to_string();
            let mut found: Vec<String> = shown.split([':', ',']).map(str::to_owned).collect();
            words.sort();
            found.sort();
            assert_eq!(found, words);
            assert_eq!(encoding.is_difference(), difference, "{text}");
        }
        assert_eq!("plain".parse(), Ok(UpdateEncoding::default()));
        assert_eq!("int8".parse(), Ok(UpdateEncoding::Int8(Int8::default())));
        let coder = |text: &str| text.parse::<UpdateEncoding>().unwrap().coder();
        assert_eq!((coder("plain"), coder("topk")), (None, Some(Coder::Rans)));
        for name in ["float32", "float16", "bfloat16", "int8", "topk"] {
            assert_eq!(coder(&format!("{name}:coder=zstd")), Some(Coder::Zstd), "{name}");
        }
    }

    #[test]
    fn what_is_no_encoding_says_why() {
        for (text, words) in [
            ("gzip", "unknown variant `gzip`"),
            ("plain:delta=true", "unknown field `delta`"),
            ("topk:delta=false", "unknown field `delta`"),
            ("int8:block=many", "expected u32"),
            ("topk:values=float64", "unknown variant `float64`"),
            ("float32:coder=lzma", "unknown variant `lzma`, expected `rans` or `zstd`"),
            ("plain:coder=zstd", "unknown field `coder`"),
            ("int8:block", "\"block\" has no value"),
            ("int8:block=256,block=256", "block is there twice"),
        ] {
            let error = text.parse::<UpdateEncoding>().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_found() {
        for (text, names) in [
            ("plain", ""),
            ("float16", ""),
            ("int8:block=255", "block"),
            ("topk:share=0,block=4097", "share block"),
            ("topk:share=0.6", "share"),
        ] {
            let problems = text.parse::<UpdateEncoding>().unwrap().problems();
            let found: Vec<&str> = problems.iter().map(|problem| problem.0).collect();
            assert_eq!(found.join(" "), names);
        }
    }
}
