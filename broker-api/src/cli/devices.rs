//! `dunlin devices`: who is there.

use std::time::Duration;

use clap::Args;
use jobs::device::{Presence, Refusal};
use jobs::id::{DeviceId, Millis};
use serde::Deserialize;

use super::client::Client;
use super::failure::CliError;
use super::output::Output;
use super::table::{self, Table};
use crate::record::DeviceRecord;

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and puts the cursor into its corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// `dunlin devices`
#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Show all that is known of one device.
    device: Option<DeviceId>,
    /// Only devices that match, such as `arch=aarch64,label.site=lab`.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Look again every second until interrupted.
    #[arg(long, short)]
    watch: bool,
}

#[derive(Debug, Deserialize)]
struct DeviceList {
    devices: Vec<DeviceRecord>,
}

/// Shows devices.
pub(super) async fn run(
    args: DevicesArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CliError> {
    loop {
        let text = look(&args, client, output).await?;
        if let Some(text) = text {
            let clear = if args.watch && output.terminal { CLEAR } else { "" };
            output.line(format_args!("{clear}{text}"))?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// One look; the text for people, unless JSON was written.
async fn look(
    args: &DevicesArgs,
    client: &Client,
    output: &mut Output,
) -> Result<Option<String>, CliError> {
    if let Some(device) = &args.device {
        let record: DeviceRecord = client.get(&format!("/v1/devices/{device}"), &[]).await?;
        if output.json {
            output.document(&record)?;
            return Ok(None);
        }
        return Ok(Some(details(&record, table::now())));
    }
    let query: Vec<(&str, &str)> =
        args.selector.iter().map(|text| ("selector", text.as_str())).collect();
    let DeviceList { devices } = client.get("/v1/devices", &query).await?;
    if output.json {
        output.document(&devices)?;
        return Ok(None);
    }
    if devices.is_empty() && args.selector.is_some() {
        return Ok(Some("no device matches the selector".to_owned()));
    }
    Ok(Some(list(&devices, table::now())))
}

fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Online => "online",
        Presence::Stale => "stale",
        Presence::Offline => "offline",
    }
}

fn list(devices: &[DeviceRecord], now: Millis) -> String {
    if devices.is_empty() {
        return "no device has joined yet; start one with: dunlin-agent --nats nats://HOST:4222"
            .to_owned();
    }
    let mut rows = Table::new(&[
        "DEVICE",
        "STATE",
        "SEEN",
        "SYSTEM",
        ">CPUS",
        ">MEMORY",
        ">CPU",
        ">TEMP",
        ">TASKS",
        "ENGINES",
        "DATA (TRAIN+TEST)",
    ]);
    for record in devices {
        let hello = &record.hello;
        let data: Vec<String> = hello
            .datasets
            .iter()
            .map(|set| format!("{} {}+{}", set.name, set.train_examples, set.test_examples))
            .collect();
        let telemetry = record.telemetry.as_ref();
        let hottest = telemetry
            .and_then(|telemetry| telemetry.temperatures.values().copied().reduce(f32::max));
        rows.row(vec![
            hello.device.to_string(),
            presence(record.presence).to_owned(),
            seen(record, now).unwrap_or_else(|| "not yet".to_owned()),
            format!("{}/{}", hello.facts.os, hello.facts.arch),
            hello.facts.cpus.to_string(),
            table::bytes(hello.facts.memory.0),
            telemetry.map_or_else(String::new, |t| format!("{:.0} %", t.cpu_percent)),
            hottest.map_or_else(String::new, |celsius| format!("{celsius:.0} C")),
            record.tasks.to_string(),
            hello.engines.join(","),
            data.join(", "),
        ]);
    }
    let online = devices.iter().filter(|record| record.presence == Presence::Online).count();
    format!("{rows}\n{online} of {} online", devices.len())
}

/// How long ago it was heard of, if it was since the broker began.
fn seen(record: &DeviceRecord, now: Millis) -> Option<String> {
    (record.last_seen != Millis(0)).then(|| table::ago(now, record.last_seen))
}

fn details(record: &DeviceRecord, now: Millis) -> String {
    let hello = &record.hello;
    let facts = &hello.facts;
    let mut rows = Table::new(&["device", hello.device.as_str()]);
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.row(vec![name.to_owned(), value]);
        }
    };
    let seen = seen(record, now)
        .map_or_else(|| "not seen since the broker began".to_owned(), |ago| format!("seen {ago}"));
    row("state", format!("{}, {seen}", presence(record.presence)));
    row("host", facts.host_name.clone());
    row("model", facts.model.clone());
    row("system", format!("{} {} {}", facts.os_version, facts.os, facts.arch).trim().to_owned());
    row("kernel", facts.kernel.clone());
    row("cpu", format!("{} x {}", facts.cpus, facts.cpu));
    row("memory", table::bytes(facts.memory.0));
    row("disk", table::bytes(facts.disk.0));
    let groups: Vec<&str> = hello.groups.iter().map(jobs::id::GroupName::as_str).collect();
    row("groups", groups.join(", "));
    let labels: Vec<String> = hello.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    row("labels", labels.join(", "));
    row("engines", hello.engines.join(", "));
    for engine in &hello.engine_facts {
        let rate = engine.gflops.map(|rate| format!("{rate:.0} GFLOP/s"));
        let memory = engine.memory.map(|memory| table::bytes(memory.0));
        let has = [&engine.device, &engine.driver, &engine.library, &memory, &rate];
        let has: Vec<&str> = has.into_iter().flatten().map(String::as_str).collect();
        let text =
            engine.unusable.as_ref().map_or_else(|| has.join(", "), |why| format!("no: {why}"));
        row(&engine.engine, text);
    }
    row("tasks", format!("{} of {}", record.tasks, hello.slots));
    row(
        "agent",
        format!("{}, up {}", hello.agent_version, {
            table::duration(now.since(hello.started_at).0.saturating_mul(1000))
        }),
    );
    for set in &hello.datasets {
        let counts: Vec<String> = set.train_class_counts.iter().map(u64::to_string).collect();
        row(
            "data set",
            format!(
                "{} ({}): {} to train on, {} to test, shape {:?}, per class: {}",
                set.name,
                set.format,
                set.train_examples,
                set.test_examples,
                set.shape,
                counts.join(" ")
            ),
        );
    }
    if let Some(telemetry) = &record.telemetry {
        row("cpu load", format!("{:.0} %, {:?}", telemetry.cpu_percent, telemetry.load));
        row("memory free", table::bytes(telemetry.memory_available.0));
        for (sensor, celsius) in &telemetry.temperatures {
            row("temperature", format!("{sensor} {celsius:.1} C"));
        }
        for Refusal { job, round, at, reason } in telemetry.refusals.iter().rev() {
            let ago = table::ago(now, *at);
            row("not used", format!("update of job {job}, round {round}, {ago}: {reason}"));
        }
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record() -> DeviceRecord {
        serde_json::from_value(json!({
            "hello": {
                "device": "pi-1", "instance": "a", "started_at": 0, "heartbeat_ms": 2000,
                "agent_version": "0.1.0", "engines": ["tract", "native"], "slots": 2,
                "engine_facts": [
                    {"engine": "cuda", "device": "Orin", "driver": "v", "memory": 8_000_000_000_u64,
                        "gflops": 900.4},
                    {"engine": "tract", "unusable": "no such file"}],
                "groups": ["lab"], "labels": {"site": "attic"},
                "datasets": [{"name": "digits", "format": "idx", "shape": [1, 8, 8],
                    "classes": 2, "train_examples": 479, "test_examples": 120,
                    "train_class_counts": [400, 79]}],
                "facts": {"arch": "aarch64", "os": "linux", "cpus": 4, "memory": 4_000_000_000_u64},
            },
            "presence": "online", "last_seen": 500, "tasks": 1,
            "telemetry": {"at": 1, "uptime_s": 5, "cpu_percent": 12.4, "load": [0.1, 0.2, 0.3],
                "memory_total": 1, "memory_used": 1, "memory_available": 2_000_000,
                "swap_total": 0, "swap_used": 0, "temperatures": {"cpu": 48.3},
                "refusals": [{"job": "j1", "round": 3, "at": 500, "reason": "left out: far"}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_list_is_a_table() {
        let mut away = record();
        away.hello.device = jobs::id::DeviceId::parse("nano").unwrap();
        (away.presence, away.telemetry) = (Presence::Offline, None);
        let text = list(&[record(), away], Millis(61_000));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().next(), Some("DEVICE"));
        let pi = "pi-1    online   60.5 s ago  linux/aarch64     4  4.0 GB  12 %  48 C      1  \
            tract,native  digits 479+120";
        assert_eq!(lines[1], pi);
        assert!(lines[2].starts_with("nano    offline"), "{}", lines[2]);
        assert_eq!(lines[3], "1 of 2 online");
        assert!(list(&[], Millis(0)).contains("dunlin-agent"));
    }

    /// A broker that was started again knows devices, but not when they were last heard of.
    #[test]
    fn a_device_that_was_not_heard_of_yet_is_not_of_1970() {
        let mut away = record();
        (away.presence, away.last_seen) = (Presence::Offline, Millis(0));
        let now = Millis(1_796_000_000_000);
        let text = list(std::slice::from_ref(&away), now);
        assert!(text.lines().any(|line| line.starts_with("pi-1    offline  not yet  ")), "{text}");
        let text = details(&away, now);
        assert!(text.contains("offline, not seen since the broker began"), "{text}");
    }

    #[test]
    fn details_name_what_is_known_only() {
        let text = details(&record(), Millis(1000));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "device       pi-1");
        assert_eq!(lines[1], "state        online, seen now");
        assert!(lines.contains(&"labels       site=attic"), "{text}");
        assert!(lines.contains(&"cuda         Orin, v, 8.0 GB, 900 GFLOP/s"), "{text}");
        assert!(lines.contains(&"tract        no: no such file"), "{text}");
        assert!(lines.contains(&"temperature  cpu 48.3 C"), "{text}");
        assert!(text.contains("per class: 400 79"), "{text}");
        let refused = "not used     update of job j1, round 3, now: left out: far";
        assert!(lines.contains(&refused), "{text}");
        assert!(!text.contains("kernel"), "{text}");
    }
}
