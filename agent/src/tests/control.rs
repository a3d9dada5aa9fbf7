//! What strategies ask of a device beside its parameters: the loss before the training, and
//! control variates.

use jobs::id::{BlobRef, RoundNumber};
use jobs::report::{FailureCode, ReportBody, UpdateReport};
use jobs::spec::{ControlVariates, LocalTraining, Purpose, Task, TaskWork, TrainTask};
use models::params::Parameters;

use super::train::{Model, training, update_of};
use super::{World, final_report};

const LEARNING_RATE: f32 = 0.0625;

fn local() -> LocalTraining {
    LocalTraining {
        epochs: 2,
        batch_size: 8,
        momentum: 0.0,
        learning_rate: LEARNING_RATE,
        ..LocalTraining::default()
    }
}

/// A round's task, changed.
fn task_of(
    model: &Model,
    (job, round, attempt): (&str, u32, u32),
    change: impl FnOnce(&mut TrainTask),
) -> Task {
    let mut task = training(model, job, attempt, local());
    task.id.round = RoundNumber(round);
    let TaskWork::Train(work) = &mut task.work else { unreachable!() };
    change(work);
    task
}

async fn trained(world: &World, task: &Task) -> UpdateReport {
    assert_eq!(task.id.purpose, Purpose::Train);
    let mut reports = world.listen(&format!("report.{}.pi", task.id.job)).await;
    world.offer(task).await;
    update_of(final_report(&mut reports).await.0)
}

async fn parameters(world: &World, blob: &BlobRef) -> Parameters {
    Parameters::from_safetensors(&world.blobs.get(blob).await.unwrap()).unwrap()
}

/// `-c + (x - y) / (T lr)`: what a control variate changes by.
fn assert_change(change: &Parameters, c: Option<&Parameters>, x: &Parameters, y: &Parameters) {
    let way = 16.0 * f64::from(LEARNING_RATE);
    for (at, change) in change.items().iter().enumerate() {
        for (index, found) in change.values.iter().enumerate() {
            let of = |parameters: &Parameters| f64::from(parameters.items()[at].values[index]);
            let expected = (of(x) - of(y)) / way - c.map_or(0.0, of);
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{}[{index}]", change.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_variates_go_on_from_the_round_that_counted() {
    let world = World::new().await;
    let mut agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let x = Parameters::from_safetensors(&model.values).unwrap();
    let control = |server: Option<&BlobRef>, device: Option<u32>| {
        let (server, device) = (server.cloned(), device.map(RoundNumber));
        let (job, kept_since) = (None, None);
        let control = ControlVariates { server, device, job, kept_since };
        move |work: &mut TrainTask| work.control = Some(control)
    };
    let plain = trained(&world, &task_of(&model, ("plain", 1, 1), |_| ())).await;
    assert_eq!((plain.steps, plain.control_change), (16, None));
    let y = parameters(&world, &plain.parameters).await;

    let first = trained(&world, &task_of(&model, ("job", 1, 1), control(None, None))).await;
    assert_eq!(first.parameters.digest, plain.parameters.digest, "all are 0 at first");
    let c_1 = first.control_change.unwrap();
    let change = parameters(&world, &c_1).await;
    assert_change(&change, None, &x, &y);

    // The server's is the device's own: there is nothing to correct.
    agent.stop().await;
    agent = world.join(world.config_with_data()).await;
    let equal = task_of(&model, ("job", 2, 1), control(Some(&c_1), Some(1)));
    let second = trained(&world, &equal).await;
    assert_eq!(second.parameters.digest, plain.parameters.digest);
    let again = task_of(&model, ("job", 2, 2), control(Some(&c_1), Some(1)));
    let again = trained(&world, &again).await;
    assert_eq!(again.control_change.unwrap().digest, second.control_change.unwrap().digest);

    // Other jobs go on from this one's first round, also when it has had others since.
    for (name, number) in [("later", 3), ("much-later", 4)] {
        let follows = task_of(&model, (name, 1, 1), |work| {
            let (server, device) = (Some(c_1.clone()), Some(RoundNumber(1)));
            let job = Some("job".parse().unwrap());
            work.control = Some(ControlVariates { server, device, job, kept_since: None });
        });
        assert_eq!(trained(&world, &follows).await.parameters.digest, plain.parameters.digest);
        let next = task_of(&model, ("job", number, 1), |work| {
            control(Some(&c_1), Some(number - 1))(work);
            work.control.as_mut().unwrap().kept_since = Some(RoundNumber(1));
        });
        trained(&world, &next).await;
        agent.stop().await;
        agent = world.join(world.config_with_data()).await;
    }

    // No other round counted for all that is known.
    let corrected = task_of(&model, ("job", 5, 1), control(Some(&c_1), None));
    let corrected = trained(&world, &corrected).await;
    assert_ne!(corrected.parameters.digest, plain.parameters.digest);
    assert!(!corrected.control_anew && !second.control_anew);
    let lost = task_of(&model, ("job", 6, 1), control(Some(&c_1), Some(2)));
    let lost = trained(&world, &lost).await;
    assert!(lost.control_anew, "it has none of round 2 any more");
    assert_eq!(lost.parameters.digest, corrected.parameters.digest);
    let found = parameters(&world, &corrected.control_change.unwrap()).await;
    let y = parameters(&world, &corrected.parameters).await;
    assert_change(&found, Some(&change), &x, &y);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_variate_of_another_model_is_refused() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let other = world.model("lenet", [1, 4, 4], 10).await;
    let task = task_of(&model, ("job", 1, 1), |work| {
        work.control = Some(ControlVariates {
            server: Some(other.parameters.clone()),
            device: None,
            job: None,
            kept_since: None,
        });
    });
    let mut reports = world.listen("report.job.pi").await;
    world.offer(&task).await;
    let report = final_report(&mut reports).await.0;
    let ReportBody::Failed(failure) = report.body else { panic!("trained: {report:?}") };
    assert_ne!(failure.code, FailureCode::Internal, "{failure:?}");
    assert!(failure.message.contains("parameter"), "{failure:?}");
    agent.stop().await;
}

/// One step on all examples has the loss of the parameters that it begins with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_before_the_training_is_told_where_it_is_asked_for() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let once = |work: &mut TrainTask| (work.local.epochs, work.local.batch_size) = (1, 64);
    let plain = trained(&world, &task_of(&model, ("plain", 1, 1), once)).await;
    assert_eq!((plain.steps, plain.initial_loss), (1, None));
    let asked = task_of(&model, ("job", 1, 1), |work| {
        once(work);
        work.initial_loss = true;
    });
    let asked = trained(&world, &asked).await;
    assert_eq!(asked.parameters.digest, plain.parameters.digest);
    assert!((asked.initial_loss.unwrap() - plain.loss).abs() < 1e-6, "{asked:?}");
    agent.stop().await;
}
