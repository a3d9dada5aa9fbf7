//! Blobs that somebody removed.

use super::*;

#[tokio::test]
async fn a_training_whose_graph_is_gone_ends_where_it_is_taken_over() {
    let world = World::new().await;
    let first_runtime = tokio::runtime::Runtime::new().unwrap();
    let first = world.broker_on(&first_runtime).await;
    let midway = midway(&world, &first).await;
    let (second, job) = (world.broker().await, &midway.job);
    let stored = second.core.store.trainings.get(job.as_str()).await.unwrap().unwrap();
    let graph = stored.value.prepared.unwrap().graph;
    second.core.store.blobs.delete(&graph).await.unwrap();
    first_runtime.shutdown_background();
    let record = ended(&second, job).await;
    assert_eq!(record.state, JobState::Failed, "{record:?}");
    let failure = record.failure.unwrap();
    assert_eq!(failure.code, FailureCode::BlobUnavailable, "{failure:?}");
    assert!(failure.message.contains(graph.digest.as_str()), "{failure:?}");
}
