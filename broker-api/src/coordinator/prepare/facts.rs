//! What devices declare of a data set: whether they agree, and how its values become inputs.

use jobs::device::{DatasetFacts, Hello};
use jobs::hours::Hours;
use jobs::id::{DatasetName, Millis};
use jobs::report::FailureCode;
use jobs::selector::Selector;
use jobs::spec::{Augment, Evaluate, Keep, Normalization, Selection, TrainSpec};
use models::picture::{Layout, Preprocessing};

use super::{Unprepared, failed};
use crate::coordinator::state::Prepared;
use crate::fleet::Fleet;

/// The data set as the devices declare it, with the names that some of them know; `None` when
/// there are no devices.
pub(super) fn agreed(
    devices: &[Hello],
    name: &DatasetName,
) -> Result<Option<DatasetFacts>, Unprepared> {
    let declared = || devices.iter().filter_map(|hello| Some((hello, of(hello, name)?)));
    let Some(first) = declared().next() else { return Ok(None) };
    let with_labels = declared().find(|(_, facts)| !facts.labels.is_empty()).unwrap_or(first);
    let with_columns = declared().find(|(_, facts)| !facts.columns.is_empty()).unwrap_or(first);
    for (device, facts) in declared() {
        for (other, known) in [first, with_labels, with_columns] {
            let Some((found, known)) = difference(facts, known) else { continue };
            return Err(failed(
                FailureCode::InvalidDataset,
                format!(
                    "devices disagree about data set {name}: {} has {known}, {} has {found}: \
                     give different data different names, or exclude one by a selector",
                    other.device, device.device,
                ),
            ));
        }
    }
    let (labels, columns) = (with_labels.1.labels.clone(), with_columns.1.columns.clone());
    Ok(Some(DatasetFacts { labels, columns, ..first.1.clone() }))
}

fn of<'a>(device: &'a Hello, name: &DatasetName) -> Option<&'a DatasetFacts> {
    device.datasets.iter().find(|facts| facts.name == *name)
}

/// How a data set differs from another one, in the words of both.
fn difference(facts: &DatasetFacts, other: &DatasetFacts) -> Option<(String, String)> {
    let tell = |tell: fn(&DatasetFacts) -> String| Some((tell(facts), tell(other)));
    if (&facts.shape, facts.classes) != (&other.shape, other.classes) {
        tell(|facts| format!("{:?} and {} classes", facts.shape, facts.classes))
    } else if !agree(&facts.labels, &other.labels) {
        tell(|facts| format!("classes {}", shortened(&facts.labels)))
    } else if !agree(&facts.columns, &other.columns) {
        tell(|facts| format!("columns {}", shortened(&facts.columns)))
    } else if (&facts.mean, &facts.std) != (&other.mean, &other.std) {
        tell(|facts| format!("mean {:?} and std {:?}", facts.mean, facts.std))
    } else {
        None
    }
}

/// The first names.
fn shortened(labels: &[String]) -> String {
    let first: Vec<&str> = labels.iter().take(10).map(String::as_str).collect();
    let more = if labels.len() > 10 { ", ..." } else { "" };
    format!("{}{more}", first.join(", "))
}

/// Whether names are the same, as far as both are known.
fn agree(names: &[String], others: &[String]) -> bool {
    names.is_empty() || others.is_empty() || names == others
}

/// Whether a device's data set is the one of a prepared training.
pub(in crate::coordinator) fn fits(facts: &DatasetFacts, prepared: &Prepared) -> bool {
    let Prepared { shape, classes, labels, columns, .. } = prepared;
    (&facts.shape, facts.classes) == (shape, *classes)
        && agree(&facts.labels, labels)
        && agree(&facts.columns, columns)
}

/// Devices that may take part in a round of a training, which before it is prepared takes any data set
/// of the name.
pub(in crate::coordinator) fn eligible(
    fleet: &Fleet,
    selector: &Selector,
    spec: &TrainSpec,
    prepared: Option<&Prepared>,
) -> Vec<Hello> {
    let mut devices = fleet.matching(selector, Some(&spec.dataset));
    devices.retain(|hello| unfit(hello, spec, prepared, fleet.now()).is_none());
    devices
}

/// Why a device that is there cannot take part now, if it cannot.
pub(in crate::coordinator) fn unfit(
    hello: &Hello,
    spec: &TrainSpec,
    prepared: Option<&Prepared>,
    now: Millis,
) -> Option<String> {
    let (dataset, selection) = (&spec.dataset, &spec.participation.selection);
    let Some(facts) = of(hello, dataset) else { return Some(format!("has no data set {dataset}")) };
    if prepared.is_some_and(|prepared| !fits(facts, prepared)) {
        return Some(format!("has another data set {dataset} than the job began with"));
    }
    let no_masks = spec.secure_aggregation.is_some() && !hello.masks;
    if no_masks || (spec.masks_within() && !hello.masks_within) {
        return Some("has an agent that does not know these masks".to_owned());
    }
    let Selection::Windows { label } = selection else { return None };
    if selection.admits(&hello.labels, now) {
        return None;
    }
    let window = hello.labels.get(label).map_or("", String::as_str);
    Some(match window.parse::<Hours>() {
        Ok(_) => format!("outside of its window {label}={window}"),
        Err(_) => {
            format!("has no window that can be read: {label}={window}, expected such as 22-06")
        }
    })
}

/// What is not known of rounds that devices are to judge where none of them can.
pub(in crate::coordinator) fn unjudged(devices: &[Hello], spec: &TrainSpec) -> Option<String> {
    let can_judge = |hello| of(hello, &spec.dataset).is_some_and(|facts| facts.test_examples > 0);
    let judges = spec.evaluate != Evaluate::Devices || devices.iter().any(can_judge);
    if devices.is_empty() || judges {
        return None;
    }
    let asked = [
        (spec.target_accuracy.is_some(), "target_accuracy"),
        (spec.early_stopping.is_some(), "early_stopping"),
        (spec.keep == Keep::Best, "keep"),
    ];
    let asked = asked.into_iter().filter_map(|(is_asked, name)| is_asked.then_some(name));
    let asked: Vec<&str> = asked.collect();
    let idle = if asked.is_empty() {
        String::new()
    } else {
        format!(", and cannot decide what is asked for: {}", asked.join(", "))
    };
    let dataset = &spec.dataset;
    Some(format!("no device has test examples of {dataset}: figures are those of training{idle}"))
}

/// Refuses random changes of what is no picture.
pub(super) fn check_augment(wanted: &[Augment], facts: &DatasetFacts) -> Result<(), Unprepared> {
    match wanted.first() {
        Some(first) if facts.shape.len() != 3 => {
            let text = format!(
                "spec.local.augment is {first}: pictures can be changed so, data set {} is {}",
                facts.name, facts.format
            );
            Err(failed(FailureCode::InvalidSpec, text))
        }
        _ => Ok(()),
    }
}

/// How values become inputs on every device: the values of all of them in place of `dataset`.
pub(super) fn normalization(
    wanted: &Normalization,
    devices: &[Hello],
    facts: &DatasetFacts,
) -> Result<Normalization, Unprepared> {
    let channels = facts.shape.first().map_or(0, |channels| *channels as usize);
    match wanted {
        // A device that joins later may declare other values.
        Normalization::Format if facts.format != "text" && !facts.mean.is_empty() => {
            let (mean, std) = (facts.mean.clone(), facts.std.clone());
            Ok(Normalization::Fixed { mean, std })
        }
        Normalization::Format | Normalization::None => Ok(wanted.clone()),
        Normalization::Fixed { .. } | Normalization::Dataset if facts.format == "text" => {
            let text =
                format!("spec.local.normalization is {wanted}: data set {} is a text", facts.name);
            Err(failed(FailureCode::InvalidSpec, text))
        }
        Normalization::Fixed { mean, std } => {
            for (name, values) in [("mean", mean), ("std", std)] {
                if values.len() != 1 && values.len() != channels {
                    let text = format!(
                        "spec.local.normalization has {} values of {name}, data set {} has \
                         {channels} channels: 1 or {channels} are expected",
                        values.len(),
                        facts.name
                    );
                    return Err(failed(FailureCode::InvalidSpec, text));
                }
            }
            Ok(wanted.clone())
        }
        Normalization::Dataset => pooled(devices, &facts.name, channels),
    }
}

/// Mean and deviation of each channel over the training examples of all devices.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts are far below 2^52, and the result is f32"
)]
fn pooled(
    devices: &[Hello],
    name: &DatasetName,
    channels: usize,
) -> Result<Normalization, Unprepared> {
    let (mut count, mut sums, mut squares) = (0.0, Vec::new(), Vec::new());
    for device in devices {
        let Some(facts) = of(device, name).filter(|facts| facts.train_examples > 0) else {
            continue;
        };
        let examples = facts.train_examples as f64;
        if facts.channel_mean.len() != channels || facts.channel_std.len() != channels {
            let text = format!(
                "device {} declares no mean of each channel of data set {name}: give fixed values \
                 in place of normalization \"dataset\"",
                device.device
            );
            return Err(failed(FailureCode::InvalidDataset, text));
        }
        // As many as there are is known by now.
        sums.resize(channels, 0.0);
        squares.resize(channels, 0.0);
        count += examples;
        for (channel, (mean, std)) in facts.channel_mean.iter().zip(&facts.channel_std).enumerate()
        {
            let (mean, std) = (f64::from(*mean), f64::from(*std));
            sums[channel] += examples * mean;
            squares[channel] += examples * (std * std + mean * mean);
        }
    }
    if count == 0.0 {
        let text = format!("no device has examples of data set {name} to train on");
        return Err(failed(FailureCode::InvalidDataset, text));
    }
    let mean: Vec<f64> = sums.into_iter().map(|sum| sum / count).collect();
    let std = squares.iter().zip(&mean).map(|(squares, mean)| {
        let std = (squares / count - mean * mean).max(0.0).sqrt();
        if std > 0.0 { std as f32 } else { 1.0 }
    });
    let std = std.collect();
    Ok(Normalization::Fixed { mean: mean.iter().map(|mean| *mean as f32).collect(), std })
}

/// How a picture becomes the input of what was trained; `None` when examples are no pictures.
pub(super) fn preprocessing(
    facts: &DatasetFacts,
    normalization: &Normalization,
) -> Option<Preprocessing> {
    let [channels, height, width] = facts.shape[..] else { return None };
    let (mean, std) = match normalization {
        Normalization::Format | Normalization::Dataset => (facts.mean.clone(), facts.std.clone()),
        Normalization::None => (vec![0.0], vec![1.0]),
        Normalization::Fixed { mean, std } => (mean.clone(), std.clone()),
    };
    (channels == 1 || channels == 3).then_some(Preprocessing {
        width,
        height,
        channels,
        layout: Layout::Nchw,
        divisor: 255.0,
        mean,
        std,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn device(name: &str, examples: u64, mean: f32, std: f32) -> Hello {
        let mut hello = testing::hello(name);
        let facts = &mut hello.datasets[0];
        facts.train_examples = examples;
        (facts.channel_mean, facts.channel_std) = (vec![mean], vec![std]);
        hello
    }

    fn name() -> DatasetName {
        DatasetName::parse("tiny").unwrap()
    }

    fn message<T: std::fmt::Debug>(refused: Result<T, Unprepared>) -> String {
        match refused {
            Err(Unprepared::Failed(failure)) => failure.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_mean_of_all_devices_is_that_of_all_examples() {
        // 1, 1, 1, 1 on one device, 0 and 3 on the other: mean 7 / 6, variance 13 / 6 - 49 / 36.
        let devices =
            [device("a", 4, 1.0, 0.0), device("b", 2, 1.5, 1.5), device("c", 0, 9.0, 9.0)];
        let facts = agreed(&devices, &name()).unwrap().unwrap();
        let found = normalization(&Normalization::Dataset, &devices, &facts).unwrap();
        let Normalization::Fixed { mean, std } = &found else { panic!("{found:?}") };
        assert!((mean[0] - 7.0 / 6.0).abs() < 1e-6, "{mean:?}");
        assert!((std[0] - (29.0_f32 / 36.0).sqrt()).abs() < 1e-6, "{std:?}");
        let pictures = preprocessing(&facts, &found).unwrap();
        assert_eq!((&pictures.mean, &pictures.std), (mean, std));
        let none = preprocessing(&facts, &Normalization::None).unwrap();
        assert_eq!((none.mean, none.std), (vec![0.0], vec![1.0]));

        let mut silent = device("d", 1, 0.0, 0.0);
        silent.datasets[0].channel_mean.clear();
        let refused = message(normalization(&Normalization::Dataset, &[silent], &facts));
        assert!(refused.contains("device d declares no mean"), "{refused}");
        let refused = message(normalization(&Normalization::Dataset, &devices[2..], &facts));
        assert!(refused.contains("no device has examples"), "{refused}");
        let refused = message(normalization(&"1,2/3".parse().unwrap(), &devices, &facts));
        assert!(refused.contains("2 values of mean"), "{refused}");
    }

    #[test]
    fn what_is_no_picture_is_not_changed() {
        let mut device = device("a", 1, 0.0, 1.0);
        let facts = &mut device.datasets[0];
        assert!(check_augment(&[Augment::Flip], facts).is_ok());
        (facts.shape, facts.format) = (vec![4], "text".to_owned());
        assert!(check_augment(&[], facts).is_ok());
        let refused = message(check_augment(&[Augment::Flip], facts));
        assert_eq!(
            refused,
            "spec.local.augment is flip: pictures can be changed so, data set tiny is text"
        );
        for wanted in ["dataset", "0.5/0.5"] {
            let refused = message(normalization(&wanted.parse().unwrap(), &[], facts));
            assert!(refused.ends_with("data set tiny is a text"), "{refused}");
        }
        // A table is normalised by the values of its dataset.toml, in the model as well.
        facts.format = "csv".to_owned();
        let fixed = normalization(&Normalization::Format, &[], facts).unwrap();
        assert_eq!(fixed, Normalization::Fixed { mean: vec![0.5], std: vec![0.5] });
    }

    #[test]
    fn devices_that_name_other_classes_or_inputs_disagree() {
        let other = |change: fn(&mut DatasetFacts)| {
            let mut other = device("b", 1, 0.0, 1.0);
            change(&mut other.datasets[0]);
            agreed(&[device("a", 1, 0.0, 1.0), other], &name())
        };
        assert!(other(|facts| facts.labels.clear()).is_ok());
        // The first names nothing, the others do.
        let third = |names: fn(&mut DatasetFacts) -> &mut Vec<String>| {
            let named = |name: &str, words: &[&str]| {
                let mut device = device(name, 1, 0.0, 1.0);
                device.datasets[0].labels.clear();
                let words = words.iter().map(|word| (*word).to_owned()).collect();
                *names(&mut device.datasets[0]) = words;
                device
            };
            let known = [named("a", &[]), named("b", &["x", "y"])];
            let facts = agreed(&known, &name()).unwrap().unwrap();
            assert_eq!(*names(&mut facts.clone()), ["x", "y"]);
            agreed(&[&known[..], &[named("c", &["y", "x"])]].concat(), &name())
        };
        for (refused, words) in [
            (other(|facts| facts.classes = 4), ["[1, 2, 2] and 3 classes", "and 4 classes"]),
            (
                other(|facts| facts.labels.swap(0, 1)),
                ["a has classes a, b, c", "b has classes b, a"],
            ),
            (other(|facts| facts.std = vec![0.25]), ["std [0.5]", "std [0.25]"]),
            (third(|facts| &mut facts.labels), ["b has classes x, y", "c has classes y, x"]),
            (third(|facts| &mut facts.columns), ["b has columns x, y", "c has columns y, x"]),
        ] {
            let text = message(refused);
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
