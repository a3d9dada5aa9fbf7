//! Parameters that are heard while they are uploaded.

use jobs::report::FailureCode;
use jobs::spec::LocalTraining;
use link::blobs::{BlobError, Pieces};

use super::train::{Model, training, update_of};
use super::*;

struct Whole(Bytes);

impl Pieces for Whole {
    type Error = BlobError;

    async fn next(&mut self, max: usize) -> Result<Bytes, Self::Error> {
        Ok(self.0.split_to(max.min(self.0.len())))
    }
}

/// The task of a round that trains nothing.
fn task_of(round: u32, model: &Model) -> Task {
    let local = LocalTraining { epochs: 0, ..LocalTraining::default() };
    let mut task = training(model, "job1", 1, local);
    task.id.round = RoundNumber(round);
    task
}

/// The blob is not in the store any more when it is asked for: whoever has it has heard it. What was
/// announced and never came, or is another blob, is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_parameters_are_heard_while_they_are_uploaded() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let mut model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let round = async |round, model: &Model, next: Option<&_>| {
        let mut task = task_of(round, model);
        let TaskWork::Train(work) = &mut task.work else { unreachable!() };
        work.next = next.cloned();
        world.offer(&task).await;
    };
    let objects = [1, 2, 3].map(|_| world.blobs.new_object());
    round(1, &model, Some(&objects[0])).await;
    update_of(final_report(&mut reports).await.0);

    let (values, size) = (model.values.clone(), model.parameters.size);
    let upload = async |object, name: &str| {
        // Each other bytes: the last value, a little changed.
        let mut bytes = values.clone();
        let last = bytes.len() - 4;
        bytes[last] ^= name.as_bytes()[name.len() - 3];
        let pieces = Whole(bytes.into());
        world.blobs.put_pieces_at(object, name.to_owned(), size, pieces).await.unwrap()
    };
    let second = upload(&objects[0], "parameters/job1/1/1").await;
    world.blobs.delete(&second).await.unwrap();
    model.parameters = second.clone();
    round(2, &model, Some(&objects[1])).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert_eq!(update.parameters.digest, second.digest);

    // Announced, and uploaded elsewhere.
    let third = upload(&objects[2], "parameters/job1/2/1").await;
    model.parameters = third.clone();
    round(3, &model, None).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert_eq!(update.parameters.digest, third.digest);

    // Heard, but other bytes than the broker says.
    round(4, &model, Some(&objects[0])).await;
    update_of(final_report(&mut reports).await.0);
    let false_one = upload(&objects[0], "parameters/job1/3/1").await;
    let (digest, blake3) = (link::digest::of(b"others"), second.blake3.clone());
    model.parameters = BlobRef { digest, blake3, ..false_one };
    round(5, &model, None).await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::BlobUnavailable);
    agent.stop().await;
}
