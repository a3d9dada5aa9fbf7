//! Updates that the device gives noise.

use jobs::report::FailureCode;
use jobs::spec::{LocalTraining, Noised};
use models::params::Parameters;

use super::train::{Model, training, update_of};
use super::*;

const NORM: f64 = 0.5;

fn task_of(model: &Model, job: &str, attempt: u32, noised: Option<f64>, seed: u64) -> Task {
    let noised = noised.map(|noise_multiplier| Noised { norm: NORM, noise_multiplier });
    let frozen = vec!["classes.bias".to_owned()];
    let local = LocalTraining { batch_size: 8, noised, frozen, ..LocalTraining::default() };
    let mut task = training(model, job, attempt, local);
    let TaskWork::Train(work) = &mut task.work else { panic!() };
    work.seed = seed;
    task
}

async fn report_of(world: &World, task: &Task) -> TaskReport {
    let mut reports = world.listen(&format!("report.{}.pi", task.id.job)).await;
    world.offer(task).await;
    final_report(&mut reports).await.0
}

async fn moved(world: &World, model: &Model, update: &BlobRef) -> Vec<f64> {
    let from = Parameters::from_safetensors(&model.values).unwrap();
    let to = Parameters::from_safetensors(&world.blobs.get(update).await.unwrap()).unwrap();
    let pairs = from.items().iter().zip(to.items());
    let values = pairs.flat_map(|(from, to)| from.values.iter().zip(&to.values));
    values.map(|(from, to)| f64::from(*to) - f64::from(*from)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Nobody sees the update without noise; another attempt has the same, another update is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_has_noise_when_it_leaves_the_device() {
    let world = World::new().await;
    let mut agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let plain = update_of(report_of(&world, &task_of(&model, "plain", 1, None, 7)).await);
    let plain = moved(&world, &model, &plain.parameters).await;
    assert!(norm(&plain) > NORM, "{}", norm(&plain));

    // Next to no noise: the same way, no longer than the norm.
    let quiet = report_of(&world, &task_of(&model, "quiet", 1, Some(1e-9), 7)).await;
    let quiet = moved(&world, &model, &update_of(quiet).parameters).await;
    assert!((norm(&quiet) - NORM).abs() < 1e-4, "{}", norm(&quiet));
    let along = plain.iter().zip(&quiet).map(|(a, b)| a * b).sum::<f64>();
    assert!((along - NORM * norm(&plain)).abs() < 1e-3);

    let first = update_of(report_of(&world, &task_of(&model, "job", 1, Some(1.0), 7)).await);
    assert_eq!((first.loss.to_bits(), first.accuracy.to_bits()), (0, 0), "not covered by noise");
    let noise = moved(&world, &model, &first.parameters).await;
    let frozen = noise.iter().filter(|value| value.abs() <= 0.0).count();
    #[expect(clippy::cast_precision_loss, reason = "a few values")]
    let deviation = norm(&noise) / ((noise.len() - frozen) as f64).sqrt();
    assert!(frozen == 10 && (0.9..1.1).contains(&deviation), "{frozen} {deviation}");

    agent.stop().await;
    agent = world.join(world.config_with_data()).await;
    let again = update_of(report_of(&world, &task_of(&model, "job", 2, Some(1.0), 7)).await);
    assert_eq!(again.parameters.digest, first.parameters.digest);
    agent.stop().await;
    agent = world.join(world.config_with_data()).await;
    let other = report_of(&world, &task_of(&model, "job", 3, Some(1.0), 8)).await;
    let ReportBody::Failed(failure) = other.body else { panic!("{other:?}") };
    assert_eq!(failure.code, FailureCode::BudgetSpent, "{failure:?}");
    agent.stop().await;
}
