//! What a strategy kept goes along into a training that goes on from another.

use jobs::spec::RoundOf;

use super::strategies::{assert_stepped, plain_steps, spec, trainings, values};
use super::*;
use crate::coordinator::updates::server::optimizer;

/// A broker with two devices, of which the first is watched.
struct Scene {
    world: World,
    broker: Broker,
    d1: Device,
    _other: Device,
}

impl Scene {
    async fn start() -> Self {
        let world = World::new().await;
        let broker = world.broker().await;
        let d1 = Device::start(&world, "d1").await;
        let other = Device::start(&world, "d2").await;
        joined(&broker, 2).await;
        Self { world, broker, d1, _other: other }
    }

    /// Two rounds of a strategy, those of another job before them if one is named; their record, and
    /// what they began with.
    async fn two(&self, strategy: &str, from: Option<RoundOf>) -> (JobRecord, Vec<Parameters>) {
        let mut spec = spec(2, strategy.parse().unwrap());
        let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
        (train.begin_from, train.local) = (from, plain_steps());
        train.keep_rounds = Some(2);
        let job = submit(&self.broker, spec).await;
        let record = ended(&self.broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        let given = self.d1.given.borrow();
        let given = [1, 2].map(|round| given[&round].clone());
        (record, given.to_vec())
    }

    /// Waits until nothing but what is kept is left of a job.
    async fn is_forgotten(&self, job: &JobId) {
        let trainings = &self.broker.core.store.trainings;
        let is_gone = async || trainings.get(job.as_str()).await.unwrap().is_none();
        until("the training is forgotten", is_gone).await;
    }
}

fn after(job: &JobRecord, round: Option<u32>) -> RoundOf {
    RoundOf { job: job.id.clone(), round: round.map(jobs::id::RoundNumber) }
}

#[tokio::test]
async fn a_server_optimizer_goes_on_where_another_training_left_it() {
    for text in ["fedavgm:learning_rate=0.5", "fedadam:tau=0.1"] {
        let scene = Scene::start().await;
        let (before, mut given) = scene.two(text, None).await;
        scene.is_forgotten(&before.id).await;
        let (after, more) = scene.two(text, Some(after(&before, None))).await;
        assert!(after.notes.is_empty(), "{after:?}");
        given.extend(more);
        let optimizer = optimizer(&text.parse().unwrap()).unwrap();
        assert_stepped(&(1..).zip(given).collect(), 4, &optimizer);
        // Of both the last state is kept, and goes with what else is kept.
        let states = [&before.rounds[1], &after.rounds[1]].map(|round| round.server_state.clone());
        let blobs = &scene.broker.core.store.blobs;
        scene.is_forgotten(&after.id).await;
        for state in states {
            assert!(blobs.size(&state.unwrap()).await.unwrap().is_some());
        }
        let early = [&before.rounds[0], &after.rounds[0]].map(|round| round.server_state.clone());
        for state in early {
            assert!(blobs.size(&state.unwrap()).await.unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_begins_at_zero_and_says_so() {
    let scene = Scene::start().await;
    let (before, _) = scene.two("fedadam:tau=0.1", None).await;
    scene.is_forgotten(&before.id).await;
    for (text, why) in [
        ("fedyogi", "that was trained by fedadam"),
        ("fedadam:tau=0.1,beta1=0", "what was kept is of another form"),
    ] {
        let (record, given) = scene.two(text, Some(after(&before, None))).await;
        let job = &before.id;
        let zero = "the server optimizer's moments begin at zero, and not where";
        assert_eq!(record.notes, [format!("{zero} {job} left them: {why}")]);
        let optimizer = optimizer(&text.parse().unwrap()).unwrap();
        assert_stepped(&(1..).zip(given).collect(), 2, &optimizer);
    }
    let (plain, _) = scene.two("fedavg", Some(after(&before, None))).await;
    assert!(plain.notes.is_empty(), "{plain:?}");
}

/// The control variates of the two devices change by 1/8 and 2/8 in each round.
#[tokio::test]
async fn control_variates_go_on_on_both_sides() {
    let scene = Scene::start().await;
    let (before, _) = scene.two("scaffold", None).await;
    scene.is_forgotten(&before.id).await;
    let known = trainings(&scene.d1).len();
    let (record, _) = scene.two("scaffold", Some(after(&before, None))).await;
    assert!(record.notes.is_empty(), "{record:?}");
    let own = |work: &jobs::spec::TrainTask| {
        let control = work.control.clone().unwrap();
        assert!(control.server.is_some());
        (control.device.unwrap().0, control.job)
    };
    let own: Vec<_> = trainings(&scene.d1)[known..].iter().map(own).collect();
    assert_eq!(own, [(2, Some(before.id.clone())), (1, None)]);
    for (round, control) in scene.d1.controls.borrow().iter() {
        let rounds = f32::from(u8::try_from(2 + round - 1).unwrap());
        let expected = rounds * (0.125 + 0.25) / 2.0;
        let found = values(control);
        assert!(found.iter().all(|it| (it - expected).abs() < 1e-6), "{round}: {found:?}");
    }
    // Devices have nothing of its own first round any more.
    let (record, _) = scene.two("scaffold", Some(after(&record, Some(1)))).await;
    let [note] = &record.notes[..] else { panic!("{record:?}") };
    assert!(note.starts_with("the control variates begin at zero"), "{note}");
    drop(scene.world);
}
