//! `dunlin train`: federated training, round by round before your eyes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jobs::id::{DatasetName, JobId, Millis, ModelName};
use jobs::job::JobState;
use jobs::spec::{
    Augment, Download, EarlyStopping, Evaluate, Keep, LateUpdates, LocalTraining, Loss, ModelQuery,
    Normalization, Optimizer, Participation, Privacy, Quarantine, RoundOf, Schedule,
    SecureAggregation, Selection, Strategy, TrainSpec, Transfer, UpdateEncoding,
};
use reqwest::Method;

use super::client::Client;
use super::failure::{self, CliError};
use super::follow::{self, Followed};
use super::output::Output;
use crate::history::RoundRecord;
use crate::record::{JobRecord, JobResult};

mod given;
pub(super) mod live;
pub(super) mod mistyped;
mod plan;
pub(super) mod rounds;

pub(super) use given::Given;
use given::OrNone;
use plan::Request;

/// `dunlin train`
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// The job as TOML, with the field names of the HTTP API; flags that are given besides override it,
    /// and none takes away its --rule, --privacy, --secure-aggregation, --quarantine or
    /// --early-stopping.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Goes on from the parameters of a round of another job, the newest when absent, with its
    /// model, data set and settings; flags that are given besides override them, as with --plan. What
    /// strategies keep (moments, control variates) goes along where it can, and the job's notes say where it cannot.
    /// The ledger of --privacy begins anew: budgets of both jobs add up. See --keep-rounds.
    #[arg(long = "continue", id = "continue", value_name = "JOB[:ROUND]", conflicts_with = "plan")]
    begin_from: Option<RoundOf>,
    /// What devices train on; those without it are not asked.
    #[arg(long, value_name = "DATASET", required_unless_present_any = ["plan", "continue"])]
    dataset: Option<DatasetName>,
    /// A registered model to go on from (NAME or NAME:VERSION), or a family ('dunlin models
    /// zoo').
    #[arg(long, value_name = "MODEL", required_unless_present_any = ["plan", "continue"])]
    model: Option<ModelQuery>,
    /// Rounds to run.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Updates to collect in a round; every device that has the data when absent.
    #[arg(long, value_name = "N")]
    devices: Option<u32>,
    /// Passes of each device over its examples in a round.
    #[arg(long, default_value_t = LocalTraining::default().epochs)]
    epochs: u32,
    /// Examples per step.
    #[arg(long, default_value_t = LocalTraining::default().batch_size, value_name = "N")]
    batch_size: u32,
    /// Steps of each device in a round, at most.
    #[arg(long, value_name = "N")]
    steps_max: Option<u32>,
    /// Step size.
    #[arg(long, default_value_t = LocalTraining::default().learning_rate, value_name = "RATE")]
    learning_rate: f32,
    /// Momentum, 0 to below 1.
    #[arg(long, default_value_t = LocalTraining::default().momentum)]
    momentum: f32,
    /// L2 penalty.
    #[arg(long, default_value_t = LocalTraining::default().weight_decay, value_name = "X")]
    weight_decay: f32,
    /// How weights move: sgd, nesterov, adam or adamw.
    #[arg(long, default_value_t = Optimizer::default())]
    optimizer: Optimizer,
    #[arg(
        long,
        default_value_t = Loss::default(),
        help = "What is made small: cross_entropy, mse or bce"
    )]
    loss: Loss,
    /// Step size over the steps of the job: constant, step:EVERY:FACTOR (such as step:500:0.5),
    /// cosine or cosine:FLOOR:STEPS.
    #[arg(long, default_value_t = Schedule::default())]
    schedule: Schedule,
    /// Steps of the job over which the step size rises, before the schedule begins.
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    warm_up: u32,
    /// Keeps local weights near the round's (Li et al. 2020): mu, 0 is off.
    #[arg(long, default_value_t = 0.0, value_name = "MU")]
    proximal: f32,
    /// Longest gradient; longer ones are scaled down to it.
    #[arg(long, value_name = "NORM")]
    gradient_norm_max: Option<f32>,
    /// Share of each target that is spread over all classes.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    label_smoothing: f32,
    /// Parameters that are not trained, by name; '*' stands for any characters. May be repeated.
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Parameters that each device keeps to itself, by name; '*' stands for any characters, '*norm*'
    /// are those of normalisations (Li et al. 2021). May be repeated.
    #[arg(long, value_name = "PATTERN")]
    keep_local: Vec<String>,
    /// Random changes of pictures that are trained on, one or more.
    #[arg(long, value_delimiter = ',', value_name = "flip,pad_crop,cutout")]
    augment: Vec<Augment>,
    /// How values become inputs: format (as devices declare), none, dataset (mean and deviation
    /// of each channel over all devices), or mean/std such as 0.49,0.48,0.45/0.25,0.24,0.26.
    #[arg(long, default_value_t = Normalization::default(), value_name = "HOW")]
    normalization: Normalization,
    #[arg(
        long,
        default_value_t = Strategy::default(),
        help = "How updates become new parameters: fedavg; fedavgm, fedadagrad, fedadam, fedyogi, \
                with settings such as fedadam:learning_rate=0.1,beta1=0.9; qfedavg:q=1, fednova, \
                scaffold, which make up for devices that differ; \
                fedbuff:exponent=0.5,staleness_max=10, which does not wait for slow devices; fedmedian, \
                fedtrimmedavg:fraction=0.2, krum:byzantine=1, multikrum:byzantine=1, \
                bulyan:byzantine=1, geometricmedian, centredclipping:radius=1 or normbound:norm=1, \
                which bear wrong updates"
    )]
    strategy: Strategy,
    /// With fedavgm, fedadagrad, fedadam or fedyogi: what takes the place of the mean, one of the
    /// strategies that bear wrong updates, such as krum:byzantine=1.
    #[arg(long, value_name = "STRATEGY")]
    rule: Option<OrNone<Strategy>>,
    #[arg(
        long,
        value_name = "PROMISE",
        help = "Differential privacy up to a budget, such as \
                central:norm=1,noise_multiplier=1.1,epsilon_budget=8,delta=1e-5: the broker adds \
                noise to the mean of updates that are no longer than norm; initial=0.1 in place of \
                norm begins with a norm that adapts, sampling_rate=0.1 draws devices by chance; \
                local:.. lets each device add noise to its own update"
    )]
    privacy: Option<OrNone<Privacy>>,
    #[arg(
        long,
        default_value_t = UpdateEncoding::default(),
        value_name = "ENCODING",
        help = "How updates travel: plain; float32, compressed without loss; float16, bfloat16, \
                int8:block=1024; or topk:share=0.01,values=bfloat16, the largest differences, the \
                rest of which the device keeps for its next update; with coder=zstd in each but \
                plain Zstandard codes the bytes"
    )]
    update: UpdateEncoding,
    /// How a round's parameters travel to devices: plain; float32, compressed without loss;
    /// float16, bfloat16 or int8, rounded, with updates that are differences.
    #[arg(long, default_value_t = Download::default(), value_name = "ENCODING")]
    download: Download,
    /// Where updates are until the broker has read them: direct, on their devices, or stored, in the
    /// object store, so that a device may leave at once.
    #[arg(long, default_value_t = Transfer::default(), value_name = "WAY")]
    transfer: Transfer,
    #[arg(
        long,
        num_args = 0..=1,
        default_missing_value = "",
        value_name = "SETTINGS",
        help = "Hides each update: the broker learns no more than their sum; with settings such as \
                clip=0.5,weight_max=100,rounding=stochastic,drop_out=0.3,colluding=0.1"
    )]
    secure_aggregation: Option<OrNone<SecureAggregation>>,
    /// Updates without which a round fails.
    #[arg(long, default_value_t = Participation::default().quorum, value_name = "N")]
    quorum: u32,
    /// Share of devices invited beyond --devices, against stragglers.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    over_selection: f64,
    #[arg(
        long,
        default_value_t = Selection::default(),
        value_name = "HOW",
        help = "Which of the devices take part: random, fraction:SHARE of those that are there, \
                round_robin, cyclic (one after another, in the order of their names), \
                by_loss[:CANDIDATES] (the highest first), by_speed[:EXPLORATION] (the fastest \
                first) or windows[:LABEL] (within hours such as the label available=22-06)"
    )]
    selection: Selection,
    #[arg(
        long,
        num_args = 0..=1,
        default_missing_value = "",
        value_name = "SETTINGS",
        help = "Keeps devices out whose updates are refused: after 3 refused updates in 10 rounds \
                for 20 rounds, or with settings such as refused=2,within=5,rounds=50; \
                left_out=true counts updates that a robust strategy leaves out as well"
    )]
    quarantine: Option<OrNone<Quarantine>>,
    #[arg(
        long,
        default_value_t = LateUpdates::default(),
        value_name = "POLICY",
        help = "What becomes of devices that are at work when their round is over: refuse (they \
                stop), or staleness:exponent=0.5,staleness_max=10 (they go on, and their update \
                counts in a later round, the less the more versions were made meanwhile)"
    )]
    late_updates: LateUpdates,
    /// A round waits so long for its updates: 30s, 10m, 2h.
    #[arg(long, value_parser = duration, default_value = "10m", value_name = "TIME")]
    round_deadline: Duration,
    /// Rounds in a row without new parameters after which the job fails.
    #[arg(long, default_value_t = Participation::default().failed_rounds_max, value_name = "N")]
    failed_rounds_max: u32,
    /// The whole job takes so long, at most.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    deadline: Option<Duration>,
    /// Ends early when the evaluation reaches it, 0 to 1.
    #[arg(long, value_name = "SHARE")]
    target_accuracy: Option<f64>,
    #[arg(
        long,
        value_name = "PATIENCE[:MIN_DELTA[:METRIC]]",
        help = "Ends early when the evaluation does not improve any more: in so many rounds, by \
                more than MIN_DELTA, of loss or accuracy; such as 3 or 3:0.001:accuracy"
    )]
    early_stopping: Option<OrNone<EarlyStopping>>,
    /// Which round's parameters are registered: last or best (as --early-stopping compares them,
    /// else by loss).
    #[arg(long, default_value_t = Keep::default(), value_name = "ROUND")]
    keep: Keep,
    /// Keeps the parameters of so many of the newest rounds until the job is forgotten, so that
    /// --continue JOB:ROUND can go on from each of them.
    #[arg(long, value_name = "N")]
    keep_rounds: Option<u32>,
    /// Who judges the model on test examples after each round: devices, broker (dunlin serve
    /// --data), both or none; with both the broker's judgement decides.
    #[arg(long, default_value_t = Evaluate::default(), value_name = "WHO")]
    evaluate: Evaluate,
    /// The same as --evaluate none.
    #[arg(long, conflicts_with = "evaluate")]
    no_evaluate: bool,
    /// Register the result under this name; the model's own when absent.
    #[arg(long, value_name = "NAME")]
    register_as: Option<ModelName>,
    /// Only devices that match, such as `arch=aarch64,label.site=lab`.
    #[arg(long, short = 'l', default_value = "", value_name = "SELECTOR")]
    selector: String,
    /// Seeds selection, initial weights and the order of examples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not wait: print the job's id; 'dunlin rounds show ID --watch' follows it.
    #[arg(long, short = 'd')]
    detach: bool,
    /// Accept nothing; show which devices would take part now, and warn where the job would wait.
    #[arg(long)]
    dry_run: bool,
}

/// Parses `500ms`, `30s`, `10m`, `2h`, `1d`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[end..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number = text[..end].parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match number {
        Some(ms) if ms > 0 => Ok(Duration::from_millis(ms)),
        _ => Err("expected a time such as 30s, 10m or 2h".to_owned()),
    }
}

fn millis(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// What the flags ask for, those that were not given by their defaults.
fn spec(args: &TrainArgs, model: ModelQuery, dataset: DatasetName) -> TrainSpec {
    TrainSpec {
        model,
        begin_from: args.begin_from.clone(),
        dataset,
        rounds: args.rounds,
        local: LocalTraining {
            epochs: args.epochs,
            batch_size: args.batch_size,
            steps_max: args.steps_max,
            learning_rate: args.learning_rate,
            momentum: args.momentum,
            weight_decay: args.weight_decay,
            optimizer: args.optimizer,
            loss: args.loss,
            schedule: args.schedule,
            warm_up: args.warm_up,
            proximal: args.proximal,
            gradient_norm_max: args.gradient_norm_max,
            label_smoothing: args.label_smoothing,
            frozen: args.freeze.clone(),
            kept_local: args.keep_local.clone(),
            augment: args.augment.clone(),
            noised: None,
            update_norm_max: None,
            normalization: args.normalization.clone(),
        },
        participation: Participation {
            devices: args.devices,
            over_selection: args.over_selection,
            quorum: args.quorum,
            deadline_ms: millis(args.round_deadline),
            failed_rounds_max: args.failed_rounds_max,
            selection: args.selection.clone(),
            quarantine: args.quarantine.and_then(|it| it.0),
            late_updates: args.late_updates,
        },
        strategy: args.strategy,
        rule: args.rule.and_then(|it| it.0),
        privacy: args.privacy.and_then(|it| it.0),
        update: args.update,
        download: args.download,
        transfer: args.transfer,
        secure_aggregation: args.secure_aggregation.and_then(|it| it.0),
        evaluate: if args.no_evaluate { Evaluate::None } else { args.evaluate },
        target_accuracy: args.target_accuracy,
        early_stopping: args.early_stopping.and_then(|it| it.0),
        keep: args.keep,
        keep_rounds: args.keep_rounds,
        register_as: args.register_as.clone(),
        seed: args.seed,
    }
}

/// Submits the job and follows it.
pub(super) async fn run(
    given: Given,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let asked = match asked(&given, client).await {
        Ok(asked) => asked,
        Err(refused) => return Err(refused.told(client, &given).await),
    };
    let Given { args, .. } = &given;
    let body = asked.body();
    if args.dry_run {
        let request = client.request(Method::POST, "/v1/jobs", &[("dry_run", "true")]);
        let answer: Result<serde_json::Value, CliError> = client.json(request.json(&body)).await;
        let answer = answer.map_err(|error| plan::by_flags(error, &given))?;
        for warning in answer["warnings"].as_array().into_iter().flatten() {
            failure::warn(warning.as_str().unwrap_or_default());
        }
        return Ok(output.document(&answer["devices"])?);
    }
    // An id of our own: a request that is sent again cannot begin a second job.
    let id = ulid::Ulid::generate().to_string().to_lowercase();
    let request = client.request(Method::PUT, &format!("/v1/jobs/{id}"), &[]).json(&body);
    let job: Result<JobRecord, CliError> = client.json(request).await;
    let job = job.map_err(|error| plan::by_flags(error, &given))?;
    if args.detach {
        if output.json {
            return Ok(output.document(&job)?);
        }
        output.line(format_args!("{}", job.id))?;
        return Ok(());
    }
    if !output.json {
        output.line(format_args!("job {}: {}", job.id, announcement(&asked)))?;
        output.line(live::HEADING)?;
    }
    let view = live::View::new(output, asked.spec.rounds);
    follow_on(view, &job.id, client, output).await
}

/// The job that the plan, the job that is to be continued, and the flags say.
async fn asked(given: &Given, client: &Client) -> Result<Request, plan::Refused> {
    let Some(from) = &given.args.begin_from else { return plan::request(given, None) };
    let mut before = client.request(Method::GET, &format!("/v1/jobs/{}", from.job), &[]);
    if !given.mistyped.is_empty() {
        before = before.timeout(plan::BROKER_WITHIN);
    }
    plan::request(given, Some(&client.json(before).await?))
}

/// Shows the rounds of a job that ended, and follows it from there.
pub(super) async fn watch(
    id: &JobId,
    rounds: u32,
    ended: &[RoundRecord],
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let mut view = live::View::new(output, rounds);
    if !output.json {
        output.line(live::HEADING)?;
        for round in ended {
            view.ended(round, output)?;
        }
    }
    follow_on(view, id, client, output).await
}

/// Follows a job to its end, and says how it ended.
async fn follow_on(
    mut view: live::View,
    id: &JobId,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    let followed = follow::follow(client, id, 0, |event| view.show(event, output)).await;
    view.finish();
    match followed? {
        Followed::Interrupted => {
            if !output.json {
                output.line(format_args!(
                    "the job goes on; follow it with: dunlin rounds show {id} --watch, \
                     stop it with: dunlin jobs cancel {id}"
                ))?;
            }
            Ok(())
        }
        Followed::Ended => finish(client, id, output).await,
    }
}

fn announcement(asked: &Request) -> String {
    let TrainSpec { model, dataset, rounds, participation, privacy, .. } = &asked.spec;
    let devices = participation.devices.map_or_else(String::new, |count| format!(" {count}"));
    let version = model.version.as_ref().map_or_else(String::new, |v| format!(":{v}"));
    let privacy = privacy.map_or_else(String::new, |privacy| {
        let (within, budget) = (privacy.rounds_within(*rounds), privacy.epsilon_budget);
        format!("; epsilon {budget} is enough for {within}")
    });
    format!(
        "train {}{version} on {dataset}, {rounds} rounds, on{devices} devices that have it{privacy}",
        model.name
    )
}

/// Says how it ended, and what to type next.
async fn finish(client: &Client, id: &JobId, output: &mut Output) -> Result<(), CliError> {
    let job: JobRecord = client.get(&format!("/v1/jobs/{id}"), &[]).await?;
    if let Some(failure) = &job.failure {
        let made = job.rounds.iter().any(|round| round.failure.is_none());
        let next = if made {
            format!(
                "go on from its newest round with 'dunlin train --continue {id}', or begin anew with \
                 'dunlin jobs retry {id}'"
            )
        } else {
            format!("try again with 'dunlin jobs retry {id}'")
        };
        let hint = format!("see it with 'dunlin jobs show {id}', {next}");
        return Err(CliError::failed(failure.code.as_str(), failure.message.clone(), hint));
    }
    if job.state == JobState::Cancelled {
        return Err(CliError::failed("cancelled", format!("job {id} was cancelled"), ""));
    }
    if output.json {
        return Ok(());
    }
    match &job.result {
        Some(JobResult::Train { model, round, enough }) => {
            let summary = rounds::summary(&job.rounds, *round);
            let why = rounds::ended_early(&job.rounds, *round, *enough);
            for note in &job.notes {
                output.line(format_args!("\nnote: {note}"))?;
            }
            output.line(format_args!(
                "\n{why}registered {}:{} ({summary})",
                model.name, model.version
            ))?;
            let (name, version) = (&model.name, &model.version);
            Ok(output.line(format_args!(
                "next: dunlin infer --model {name} PICTURE...\n      \
                 dunlin models pull {name}:{version}"
            ))?)
        }
        _ => Ok(output.line(format_args!("job {id} {}", super::jobs::state(job.state)))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let cases = [("30", 30_000), ("500ms", 500), ("10m", 600_000), ("2h", 7_200_000)];
        for (text, ms) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "m", "5y", "-3s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
