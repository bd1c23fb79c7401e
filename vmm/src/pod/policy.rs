//! Which of a pod's annotations a node honours: Kata's `enable_annotations`.

use husk_hotplug::sizing::annotation::HYPERVISOR;
use regex_lite::Regex;

/// An annotation that the node does not let pods use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} is not enabled on this node, enabled below {HYPERVISOR}: {enabled}")]
pub struct NotEnabled {
    key: String,
    enabled: String,
}

/// The keys below `io.katacontainers.config.hypervisor.` that pods may use: those in which one of
/// the expressions is found, anywhere, as Kata has it. All of them without a policy.
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Vec<Regex>>);

impl Policy {
    /// Reads one expression.
    ///
    /// # Errors
    /// It is none, in one line.
    pub fn expression(text: &str) -> Result<Regex, String> {
        Regex::new(text).map_err(|error| format!("no regular expression: {}", one_line(&error.to_string())))
    }

    /// Only what one of `expressions` is found in. None of them enables nothing, and an empty one counts for none.
    pub fn of(expressions: impl IntoIterator<Item = Regex>) -> Self {
        let expressions = expressions.into_iter().filter(|one| !one.as_str().is_empty());
        Self(Some(expressions.collect()))
    }

    /// Holds annotations against the policy.
    ///
    /// # Errors
    /// The first one that is not enabled.
    pub fn check<'a>(&self, annotations: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), NotEnabled> {
        let Some(expressions) = &self.0 else {
            return Ok(());
        };
        let mut keys = annotations.into_iter().map(|(key, _)| key);
        let forbidden = keys.find(|key| {
            let name = key.strip_prefix(HYPERVISOR);
            name.is_some_and(|name| !expressions.iter().any(|one| one.is_match(name)))
        });
        forbidden.map_or(Ok(()), |key| {
            let enabled: Vec<&str> = expressions.iter().map(Regex::as_str).collect();
            Err(NotEnabled {
                key: key.chars().filter(|c| !c.is_control()).collect(),
                enabled: if enabled.is_empty() {
                    "none".into()
                } else {
                    enabled.join(", ")
                },
            })
        })
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &Policy, name: &str) -> Result<(), String> {
        let key = format!("{HYPERVISOR}{name}");
        policy.check([(key.as_str(), "1")]).map_err(|error| error.to_string())
    }

    fn policy(expressions: &[&str]) -> Policy {
        Policy::of(expressions.iter().map(|text| Policy::expression(text).unwrap()))
    }

    #[test]
    fn an_expression_is_looked_for_anywhere_in_the_key() {
        let kata = policy(&["enable_iommu", "kernel_params", "default_vcpus", "^default_mem"]);
        for name in ["default_vcpus", "default_memory", "my_kernel_params"] {
            assert_eq!(check(&kata, name), Ok(()), "{name}");
        }
        let refusal = check(&kata, "default_max_vcpus").unwrap_err();
        assert_eq!(
            refusal,
            "annotation io.katacontainers.config.hypervisor.default_max_vcpus is not enabled on this node, enabled below \
             io.katacontainers.config.hypervisor.: enable_iommu, kernel_params, default_vcpus, ^default_mem"
        );
        assert!(check(&kata, "x_default_memory").is_err(), "anchored");
    }

    #[test]
    fn the_policy_is_about_a_pods_configuration_alone() {
        let nothing = policy(&[""]);
        assert!(check(&nothing, "default_vcpus").unwrap_err().ends_with(": none"));
        assert_eq!(nothing.check([("io.kubernetes.cri.sandbox-memory", "1")]), Ok(()));
        assert_eq!(check(&Policy::default(), "default_vcpus"), Ok(()), "none was given");
        assert_eq!(check(&policy(&[".*"]), "default_vcpus"), Ok(()));
    }

    #[test]
    fn what_is_no_expression_is_said_in_one_line() {
        let refusal = Policy::expression("a(").unwrap_err();
        assert!(
            refusal.starts_with("no regular expression: ") && refusal.lines().count() == 1,
            "{refusal}"
        );
    }
}
