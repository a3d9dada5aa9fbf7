//! A rule whose result takes the place of the mean in a server optimizer's step.

use super::{Byzantine, FedTrimmedAvg, MultiKrum, PrivacyMode, Strategy, TrainSpec};

impl TrainSpec {
    /// What is made of the updates themselves: by the rule where there is one, else by the strategy.
    pub fn combination(&self) -> &Strategy {
        self.rule.as_ref().unwrap_or(&self.strategy)
    }

    /// Of so many updates, those that may be wrong and are left out for that.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below `updates`")]
    #[expect(clippy::cast_precision_loss, reason = "updates of a round are few")]
    pub fn left_out_max(&self, updates: usize) -> usize {
        let rule = self.combination();
        if let Strategy::MultiKrum(MultiKrum { byzantine, .. })
        | Strategy::Bulyan(Byzantine { byzantine }) = rule
        {
            *byzantine as usize
        } else if let Strategy::FedTrimmedAvg(FedTrimmedAvg { fraction }) = rule {
            // So many at each end.
            2 * (fraction * updates as f64) as usize
        } else {
            0
        }
    }
}

/// What is wrong with the rule: the field, its value, what is accepted.
pub(super) fn problems(spec: &TrainSpec) -> Vec<(String, String, &'static str)> {
    let Some(rule) = &spec.rule else { return Vec::new() };
    let mut found = Vec::new();
    let mut check = |right: bool, expected| {
        if !right {
            found.push(("rule".to_owned(), rule.to_string(), expected));
        }
    };
    let expected = "absent, but with fedavgm, fedadagrad, fedadam or fedyogi, because alone it is \
                    the strategy";
    check(spec.strategy.is_server_optimizer(), expected);
    let expected = "fedmedian, fedtrimmedavg, krum, multikrum, bulyan, geometricmedian, \
                    centredclipping or normbound";
    check(bears_wrong_updates(rule), expected);
    let noised = spec.privacy.is_some_and(|privacy| privacy.mode == PrivacyMode::Central);
    check(!noised, "absent, because privacy adds noise to a mean");
    let expected = "absent, because secure aggregation tells no more than the sum of updates";
    check(spec.secure_aggregation.is_none(), expected);
    let settings = rule.problems().into_iter();
    found.extend(
        settings
            .map(|(name, value, expected)| (format!("rule.{name}"), value.to_string(), expected)),
    );
    found
}

fn bears_wrong_updates(strategy: &Strategy) -> bool {
    matches!(
        strategy,
        Strategy::FedMedian {}
            | Strategy::FedTrimmedAvg(_)
            | Strategy::Krum(_)
            | Strategy::MultiKrum(_)
            | Strategy::Bulyan(_)
            | Strategy::GeometricMedian {}
            | Strategy::CentredClipping(_)
            | Strategy::NormBound(_)
    )
}

#[cfg(test)]
mod tests {
    use crate::spec::{JobSpec, validate};

    fn fields(members: &str) -> String {
        let text = format!(
            r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
            "rounds":1,{members}}}}}"#
        );
        let spec: JobSpec = serde_json::from_str(&text).unwrap();
        let problems = validate(&spec);
        let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
        found.join(" ").replace("work.", "")
    }

    #[test]
    fn a_rule_goes_with_a_server_optimizer_and_brings_what_it_needs() {
        let krum = r#""rule":{"name":"krum","byzantine":1}"#;
        let adam = r#""strategy":{"name":"fedadam"}"#;
        let quorum = |quorum: u32| format!(r#""participation":{{"quorum":{quorum}}}"#);
        assert_eq!(fields(&format!("{adam},{krum},{}", quorum(5))), "");
        assert_eq!(fields(&format!("{adam},{krum},{}", quorum(4))), "participation.quorum");
        assert_eq!(fields(&format!("{krum},{}", quorum(5))), "rule");
        let all = r#""rule":{"name":"fedtrimmedavg","fraction":0.5}"#;
        assert_eq!(
            fields(&format!(r#""strategy":{{"name":"krum","byzantine":1}},{all},{}"#, quorum(3))),
            "rule rule.fraction"
        );
        assert_eq!(fields(&format!(r#"{adam},"rule":{{"name":"fedyogi"}}"#)), "rule");
        let median = r#""rule":{"name":"fedmedian"}"#;
        let sparse = r#""update":{"encoding":"topk"}"#;
        assert_eq!(fields(&format!("{adam},{median},{sparse},{}", quorum(3))), "update.encoding");
        let private = r#""privacy":{"mode":"central","clip":{"norm":1},"noise_multiplier":5,
            "delta":1e-5,"epsilon_budget":8},"participation":{"devices":500,"quorum":3}"#;
        assert_eq!(fields(&format!("{adam},{median},{private}")), "rule");
        let secure = r#""secure_aggregation":{},"participation":{"quorum":5}"#;
        assert_eq!(fields(&format!("{adam},{median},{secure}")), "rule");
        let quarantine = |rule: &str| {
            format!(
                r#"{adam},{rule},"participation":{{"quorum":5,"quarantine":{{"left_out":true}}}}"#
            )
        };
        assert_eq!(fields(&quarantine(all)), "rule.fraction");
        assert_eq!(fields(&quarantine(median)), "participation.quarantine.left_out");
    }
}
