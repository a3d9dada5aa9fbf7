//! What a strategy kept goes along into a training that goes on from another.

use jobs::id::Digest;
use jobs::round::Outcome;
use jobs::spec::RoundOf;
use link::blobs::Blobs;

use super::strategies::{assert_stepped, plain_steps, spec, trainings, values};
use super::*;
use crate::coordinator::updates::server::optimizer;

/// A broker with two devices, of which the first is watched.
struct Scene {
    world: World,
    broker: Broker,
    d1: Device,
    other: Device,
}

impl Scene {
    async fn start() -> Self {
        let world = World::new().await;
        let broker = world.broker().await;
        let d1 = Device::start(&world, "d1").await;
        let other = Device::start(&world, "d2").await;
        joined(&broker, 2).await;
        Self { world, broker, d1, other }
    }

    /// Rounds of a strategy that has nothing to say of where it began; the job is forgotten, but for
    /// the rounds that it keeps.
    async fn exactly(
        &self,
        rounds: u32,
        keep: u32,
        strategy: &str,
        from: Option<RoundOf>,
    ) -> JobRecord {
        let record = self.run(keeping(rounds, keep, strategy, from)).await;
        assert!(record.notes.is_empty(), "{record:?}");
        self.is_forgotten(&record.id).await;
        record
    }

    async fn run(&self, spec: JobSpec) -> JobRecord {
        let job = submit(&self.broker, spec).await;
        let record = ended(&self.broker, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{record:?}");
        record
    }

    /// Two rounds of a strategy, those of another job before them if one is named; their record, and
    /// what they began with.
    async fn two(&self, strategy: &str, from: Option<RoundOf>) -> (JobRecord, Vec<Parameters>) {
        let record = self.run(keeping(2, 2, strategy, from)).await;
        let given = self.d1.given.borrow();
        let given = [1, 2].map(|round| given[&round].clone());
        (record, given.to_vec())
    }

    async fn states(&self, job: &JobId) -> Vec<u32> {
        stored_states(&self.broker.core.store.blobs, job).await
    }

    /// Waits until nothing but what is kept is left of a job.
    async fn is_forgotten(&self, job: &JobId) {
        let trainings = &self.broker.core.store.trainings;
        let is_gone = async || trainings.get(job.as_str()).await.unwrap().is_none();
        until("the training is forgotten", is_gone).await;
    }
}

fn keeping(rounds: u32, keep: u32, strategy: &str, from: Option<RoundOf>) -> JobSpec {
    let mut spec = spec(rounds, strategy.parse().unwrap());
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    (train.begin_from, train.local) = (from, plain_steps());
    train.keep_rounds = Some(keep);
    spec
}

/// Digests of the parameters of each round, and of what the strategy kept with them.
fn made(job: &JobRecord) -> Vec<[Digest; 2]> {
    let digests = |round: &Outcome| {
        [&round.parameters, round.server_state.as_ref().unwrap()].map(|blob| blob.digest.clone())
    };
    job.rounds.iter().map(digests).collect()
}

/// The rounds of a job of which the store has what the strategy kept.
async fn stored_states(blobs: &Blobs, job: &JobId) -> Vec<u32> {
    let prefix = format!("server-state/{job}/");
    let page = blobs.list(0, 1000).await.unwrap();
    let states = page.named.iter().filter_map(|(name, _)| name.strip_prefix(&prefix));
    let mut rounds: Vec<u32> =
        states.map(|rest| rest.split('/').next().unwrap().parse().unwrap()).collect();
    rounds.sort_unstable();
    rounds
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
        // Of each round that a job keeps the state is kept, once.
        scene.is_forgotten(&after.id).await;
        for record in [&before, &after] {
            assert_eq!(scene.states(&record.id).await, [1, 2]);
        }
    }
}

/// Each round that a job keeps is gone on from as if the job had not ended, also by jobs that go on
/// from those; what is not kept any more is gone.
#[tokio::test]
async fn each_round_that_is_kept_is_gone_on_from_exactly() {
    for text in ["fedavgm:learning_rate=0.5", "fedyogi:tau=0.1"] {
        let scene = Scene::start().await;
        let whole = scene.exactly(6, 3, text, None).await;
        assert_eq!(scene.states(&whole.id).await, [4, 5, 6]);
        let second = scene.exactly(2, 2, text, Some(after(&whole, Some(4)))).await;
        assert_eq!(made(&second), made(&whole)[4..]);
        let third = scene.exactly(1, 1, text, Some(after(&second, Some(1)))).await;
        assert_eq!(made(&third), made(&whole)[5..]);
        // What the last round left is kept as the job's last and as its sixth.
        scene.exactly(1, 1, text, Some(after(&whole, Some(6)))).await;
        let gone = scene.two(text, Some(after(&whole, Some(5)))).await.0;
        assert_eq!(made(&gone)[0], made(&whole)[5]);
    }
}

/// What a broker keeps that is killed, the next one keeps and lets go of.
#[tokio::test]
async fn what_is_kept_is_let_go_of_by_the_next_owner() {
    let world = World::new().await;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&runtime).await;
    let (gate, open) = watch::channel(false);
    let d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start_as(&world, "d2", move |task| match task.id.round.0 {
        4 => Action::After(open.clone()),
        _ => Action::Work,
    })
    .await;
    joined(&first, 2).await;
    let job = submit(&first, keeping(5, 2, "fedadam:tau=0.1", None)).await;
    until("the fourth round", async || d1.given.borrow().contains_key(&4)).await;
    let second = world.broker().await;
    runtime.shutdown_background();
    gate.send(true).unwrap();
    let record = ended(&second, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let blobs = &second.core.store.blobs;
    until("older ones are gone", async || stored_states(blobs, &job).await == [4, 5]).await;
    let optimizer = optimizer(&"fedadam:tau=0.1".parse().unwrap()).unwrap();
    assert_stepped(&d1.given.borrow(), 5, &optimizer);
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
        assert_eq!(record.notes, [format!("{zero} {job}:2 left them: {why}")]);
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
    drop(scene.world);
}

/// What a device is told in a round.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    seed: u64,
    /// The round and the job of its own control variate.
    own: Option<(u32, String)>,
    /// The oldest round of which it is to keep one.
    since: Option<u32>,
}

/// What it is told in each round of a job.
fn told(device: &Device, job: &JobRecord) -> Vec<Told> {
    let tasks = device.offered.borrow();
    let of_job = tasks.iter().filter(|task| task.id.job == job.id);
    let told = of_job.filter_map(|task| {
        let TaskWork::Train(work) = &task.work else { return None };
        let control = work.control.clone().unwrap();
        let of = control.job.unwrap_or_else(|| job.id.clone()).to_string();
        let own = control.device.map(|round| (round.0, of));
        Some(Told { seed: work.seed, own, since: control.kept_since.map(|round| round.0) })
    });
    told.collect()
}

/// Devices keep their control variates of the rounds that the job keeps. Two jobs that follow one
/// another from such a round are told what the uninterrupted one was, and come to the same.
#[tokio::test]
async fn control_variates_of_a_kept_round_go_on_through_several_jobs() {
    let scene = Scene::start().await;
    let whole = scene.exactly(5, 3, "scaffold", None).await;
    let first = whole.id.to_string();
    let of_whole = told(&scene.d1, &whole);
    let since: Vec<_> = of_whole.iter().map(|told| told.since).collect();
    // A round may be offered before the one before is among those that are kept.
    assert_eq!(since[2..4], [Some(1); 2], "{since:?}");
    assert!(since[4].is_some_and(|since| since <= 2), "{since:?}");
    let second = scene.exactly(1, 1, "scaffold", Some(after(&whole, Some(3)))).await;
    let third = scene.exactly(1, 1, "scaffold", Some(after(&second, None))).await;
    assert_eq!([made(&second), made(&third)].concat(), made(&whole)[3..]);
    for (record, index, own) in [(&second, 3, (3, first)), (&third, 4, (1, second.id.to_string()))]
    {
        let expected = Told { seed: of_whole[index].seed, own: Some(own), since: None };
        assert_eq!(told(&scene.d1, record), [expected]);
    }
    // Round 2 is not kept.
    let error = scene.broker.check(&keeping(1, 1, "scaffold", Some(after(&whole, Some(2))))).await;
    assert!(error.unwrap_err().detail.contains("are gone"));
}

/// Who was not in the job before goes on with what it kept of the one before that.
#[tokio::test]
async fn a_device_that_missed_a_job_goes_on_from_the_one_before() {
    let scene = Scene::start().await;
    let first = scene.exactly(2, 1, "scaffold", None).await;
    let mut one = keeping(1, 1, "scaffold", Some(after(&first, None)));
    let WorkSpec::Train(train) = &mut one.work else { unreachable!() };
    (train.participation.devices, train.participation.quorum) = (Some(1), 1);
    let second = scene.run(one).await;
    scene.is_forgotten(&second.id).await;
    let third = scene.exactly(1, 1, "scaffold", Some(after(&second, None))).await;
    let was_in = second.rounds[0].updates[0].0.as_str();
    for (name, device) in [("d1", &scene.d1), ("d2", &scene.other)] {
        let (round, job) = if name == was_in { (1, &second) } else { (2, &first) };
        assert_eq!(told(device, &third)[0].own, Some((round, job.id.to_string())), "{name}");
    }
    // Of a job that is forgotten nobody knows who was in it.
    scene.broker.core.store.jobs.remove(first.id.as_str()).await.unwrap();
    let (fourth, _) = scene.two("scaffold", Some(after(&second, None))).await;
    let expected = format!(
        "control variates of devices that were in job {} or before, and in none since, begin at \
         zero: it is gone",
        first.id
    );
    assert_eq!(fourth.notes, [expected]);
    let away = if was_in == "d1" { &scene.other } else { &scene.d1 };
    assert_eq!(told(away, &fourth)[0].own, None);
}

#[tokio::test]
async fn a_device_that_lost_its_control_variate_is_named() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let _d2 = Device::start(&world, "forgetful-2").await;
    joined(&broker, 2).await;
    let job = submit(&broker, keeping(3, 1, "scaffold", None)).await;
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let note = |round| {
        format!(
            "device forgetful-2 had lost its control variate, which began at zero in round {round}"
        )
    };
    until("it is told", async || {
        let mut notes = broker.job(&job).await.unwrap().notes;
        notes.sort();
        notes == [note(2), note(3)]
    })
    .await;
}
