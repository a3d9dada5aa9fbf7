//! The state is stored as one message, whatever the number of devices.

use std::collections::BTreeMap;

use super::*;
use crate::id::JobId;
use crate::training::counted::COUNTED_MAX;

/// Bytes of the state as it is stored, at most: beside it is the list of what devices stored.
const STORED_MAX: usize = 500_000;

/// Length as it is stored.
fn packed(training: &Training) -> usize {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    serde_json::to_writer(&mut gzip, training).unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap().len()
}

/// The largest state in some rounds with more devices than a round takes.
fn largest(spec: TrainSpec, controls: Option<Controls>) -> usize {
    let start = Start { controls, server_state: Some(blob(7)), ..Start::of(blob(0)) };
    let has_controls = spec.strategy == "scaffold".parse().unwrap();
    let (mut training, mut effects) =
        Training::begin_with(Millis(0), spec, Millis(1_000_000), start);
    let mut largest = packed(&training);
    for _ in 0..20 {
        let mut following = Vec::new();
        for effect in &effects {
            let Some(mut event) = answer(effect, 2 * DEVICES_MAX + 100, 0.5) else { continue };
            if let Event::Round { round, event: RoundEvent::UpdateReceived { device, update, .. } } =
                &mut event
                && has_controls
            {
                let change = unlike_others(device, RoundNumber(round.0 + 1000));
                let name = format!("{}/control", update.parameters.object_name());
                update.control_change = Some(BlobRef { name: Some(name), ..change });
            }
            following.extend(training.step(Millis(1), &event));
        }
        largest = largest.max(packed(&training));
        effects = following;
    }
    assert!(training.rounds_done() > 3);
    assert!(training.history().len() <= OUTCOMES_MAX);
    largest
}

/// As many as are remembered, each of a job of its own, with names that no compression makes shorter.
fn many_controls() -> Controls {
    let unlike = |number: u64| -> String {
        let words = (0..4).map(|word| format!("{:016x}", mixed(mixed(number) + word)));
        words.collect::<Vec<_>>().concat()
    };
    let of = |number: u64| {
        let device = DeviceId::parse(&unlike(2 * number + 1)).unwrap();
        let job = JobId::parse(&unlike(2 * number)[..26]).unwrap();
        (job, BTreeMap::from([(device, RoundNumber(1000))]))
    };
    let (job, counted) = of(0);
    let earlier = (1..COUNTED_MAX as u64).map(of).collect();
    Controls { job, counted, earlier }
}

#[test]
fn the_stored_state_fits_into_one_message() {
    let found = largest(spec(300), None);
    assert!((100_000..STORED_MAX).contains(&found), "{found}");
    let (mut training, effects) = begin(spec(300));
    run(&mut training, effects, 2, 0.5);
    assert_eq!(training.history().len(), OUTCOMES_MAX);
    assert_eq!(training.history().last().unwrap().round, RoundNumber(300));
    assert!(serde_json::to_vec(&training).unwrap().len() < 200_000);
}

#[test]
fn so_does_one_with_control_variates_of_many_jobs_before() {
    let scaffold = TrainSpec { strategy: "scaffold".parse().unwrap(), ..spec(300) };
    let controls = many_controls();
    let found = largest(scaffold, Some(controls.clone()));
    assert_eq!(controls.devices().count(), COUNTED_MAX);
    assert!((250_000..STORED_MAX).contains(&found), "{found}");
}
