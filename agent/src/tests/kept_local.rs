//! Parameters that stay on the device.

use jobs::id::RoundNumber;
use jobs::report::{EvaluationReport, ReportBody};
use jobs::spec::{EvaluateTask, LocalTraining, Loss, Normalization, Purpose, Task, TaskWork};
use models::params::{Parameters, is_named};

use super::train::{Model, training, update_of};
use super::{World, final_report, task};

/// Trains a round from these parameters; what came back.
async fn round(
    world: &World,
    model: &Model,
    (job, number): (&str, u32),
    attempt: u32,
    kept: &[&str],
    from: &Parameters,
) -> Parameters {
    let local = LocalTraining {
        epochs: 2,
        batch_size: 8,
        kept_local: kept.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..LocalTraining::default()
    };
    let parameters = world.put(from.to_safetensors()).await;
    let from = Model { graph: model.graph.clone(), parameters, values: Vec::new() };
    let mut reports = world.listen(&format!("report.{job}.pi")).await;
    world.offer(&in_round(training(&from, job, attempt, local), number)).await;
    let update = update_of(final_report(&mut reports).await.0);
    Parameters::from_safetensors(&world.blobs.get(&update.parameters).await.unwrap()).unwrap()
}

fn in_round(mut task: Task, round: u32) -> Task {
    task.id.round = RoundNumber(round);
    task
}

async fn judged(
    world: &World,
    model: &Model,
    (job, number): (&str, u32),
    kept: &[&str],
    parameters: &Parameters,
) -> EvaluationReport {
    let work = TaskWork::Evaluate(EvaluateTask {
        graph: model.graph.clone(),
        parameters: world.put(parameters.to_safetensors()).await,
        dataset: "digits".parse().unwrap(),
        batch_size: 8,
        normalization: Normalization::Format,
        loss: Loss::default(),
        kept_local: kept.iter().map(|pattern| (*pattern).to_owned()).collect(),
        encoded: None,
    });
    let mut reports = world.listen(&format!("report.{job}.pi")).await;
    world.offer(&in_round(task(job, Purpose::Evaluate, 1, work), number)).await;
    let report = final_report(&mut reports).await.0;
    let ReportBody::Evaluated(found) = report.body else { panic!("not evaluated: {report:?}") };
    EvaluationReport { duration_ms: jobs::id::Millis(0), ..found }
}

/// A device alone learns the same whether it sends all parameters or keeps some: what it keeps
/// goes on from round to round, through another attempt and a new agent, and is never sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_goes_on_with_what_it_keeps_and_does_not_send_it() {
    const KEPT: &[&str] = &["hidden.*"];
    let world = World::new().await;
    let mut agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let first = Parameters::from_safetensors(&model.values).unwrap();
    let patterns = [KEPT[0].to_owned()];
    assert_eq!(first.named(&patterns).items().len(), 2);
    let (mut plain, mut shared) = (first.clone(), first.clone());
    for number in 1..=3 {
        plain = round(&world, &model, ("plain", number), 1, &[], &plain).await;
        let before = shared.clone();
        shared = round(&world, &model, ("kept", number), 1, KEPT, &before).await;
        // The report was lost, say.
        agent.stop().await;
        agent = world.join(world.config_with_data()).await;
        let again = round(&world, &model, ("kept", number), 2, KEPT, &before).await;
        assert_eq!(again, shared, "round {number}");
        for (sent, first) in shared.items().iter().zip(first.items()) {
            let stays = is_named(&patterns, &sent.name);
            assert_eq!(sent == first, stays, "round {number}: {}", sent.name);
            if !stays {
                assert_eq!(plain.find(&sent.name), Some(sent), "round {number}");
            }
        }
        let expected = judged(&world, &model, ("plain", number), &[], &plain).await;
        let found = judged(&world, &model, ("kept", number), KEPT, &shared).await;
        assert_eq!(found, expected, "round {number}");
    }
    let without = judged(&world, &model, ("other", 1), &[], &shared).await;
    let with = judged(&world, &model, ("kept", 3), KEPT, &shared).await;
    assert!(with.loss < without.loss, "{with:?} {without:?}");
    agent.stop().await;
}
