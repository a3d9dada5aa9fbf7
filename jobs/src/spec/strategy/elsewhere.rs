//! Names by which strategies are known elsewhere, and what gives them here.

use serde::Deserializer;
use serde::de::Error as _;

use super::Strategy;
use crate::spec::settings::text_or_table;

/// The names that there are.
pub(super) const NAMES: [&str; 17] = [
    "fedavg",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "qfedavg",
    "fednova",
    "scaffold",
    "fedbuff",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "geometricmedian",
    "centredclipping",
    "normbound",
];

const OTHERS: [(&str, &str); 23] = [
    ("fedprox", PROXIMAL),
    ("fedbn", KEPT_LOCAL),
    ("fedper", PARTIAL),
    ("fedrep", PARTIAL),
    ("lgfedavg", PARTIAL),
    ("cyclic", CYCLIC),
    ("fedcyclic", CYCLIC),
    ("fedopt", "it is fedadagrad, fedadam, fedyogi or fedavgm"),
    (
        "fedasync",
        "it is fedbuff, or any strategy with late updates: --late-updates staleness, \
        participation.late_updates in JSON and plans",
    ),
    ("qffl", "it is qfedavg"),
    ("median", "it is fedmedian"),
    ("trimmedmean", "it is fedtrimmedavg"),
    ("fedtrimmedmean", "it is fedtrimmedavg"),
    ("rfa", "it is geometricmedian"),
    ("geomedian", "it is geometricmedian"),
    ("centeredclipping", "it is centredclipping"),
    ("normbounding", "it is normbound"),
    ("normclipping", "it is normbound"),
    ("dpfedavg", PRIVATE),
    ("dpfedavgfixed", PRIVATE),
    ("dpfedavgadaptive", PRIVATE),
    ("secagg", SECURE),
    ("secaggplus", SECURE),
];

const PROXIMAL: &str = "any strategy is that with a proximal term: --proximal 0.01, local.proximal \
    in JSON and plans";
const KEPT_LOCAL: &str = "any strategy is that with normalisations that stay on their device: \
    --keep-local '*norm*', local.kept_local in JSON and plans";
const PARTIAL: &str = "any strategy is that with parameters that stay on their device: \
    --keep-local PATTERN, local.kept_local in JSON and plans";
const CYCLIC: &str = "any strategy is that with devices that train one after another: \
    --selection cyclic, participation.selection {\"kind\": \"cyclic\"} in JSON and plans";
const PRIVATE: &str = "it is fedavg with --privacy central:.., privacy in JSON and plans";
const SECURE: &str = "it is fedavg with --secure-aggregation, secure_aggregation in JSON and plans";

/// What gives a strategy that is none by this name, in words.
pub(super) fn says(name: &str) -> Option<String> {
    let plain = name.to_ascii_lowercase().replace(['-', '_', ' '], "").replace('+', "plus");
    if let Some(known) = NAMES.into_iter().find(|known| *known == plain) {
        return Some(format!("it is written {known}"));
    }
    let (_, says) = OTHERS.into_iter().find(|(other, _)| *other == plain)?;
    Some(says.to_owned())
}

text_or_table!(
    Strategy,
    "a strategy such as \"fedadam\" or \"fedadam:learning_rate=0.1\", or a table such as {\"name\": \
     \"fedadam\", \"learning_rate\": 0.1}",
    of_table
);

/// Names that other systems have say what gives that here.
fn of_table<'de, D: Deserializer<'de>>(table: D) -> Result<Strategy, D::Error> {
    Strategy::deserialize(table).map_err(|error| {
        let text = error.to_string();
        let name = text.strip_prefix("unknown variant `").and_then(|rest| rest.split_once('`'));
        match name.and_then(|(name, _)| Some((name, says(name)?))) {
            Some((name, says)) => D::Error::custom(format!("no strategy is named {name}: {says}")),
            None => error,
        }
    })
}
