//! What Kubernetes is told: runtime classes, and how nodes that can run them are found.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::content::Content;
use super::desired::DesiredFiles;
use super::kata::Handler;
use super::{Options, Overhead};

/// Where node feature discovery's local source looks (its hostPath in its own manifests). It reads every file there.
const FEATURES: &str = "/etc/kubernetes/node-feature-discovery/features.d";
/// The label that runtime classes select by.
const LABEL: &str = "feature.node.kubernetes.io/runtime.kata";

/// Adds the files for `kubectl apply`, and the node's own features.
pub(super) fn describe(options: &Options, handlers: &[Handler], desired: &mut DesiredFiles) {
    let folder = options.shared().join("kubernetes");
    let mut put = |path: &Path, text: String| desired.items.push((path.to_owned(), Content::text(text)));
    put(&folder.join("runtimeclass.yaml"), classes(options, handlers));
    put(&folder.join("nodefeaturerule.yaml"), rule(options));
    if !options.features.is_empty() {
        put(&features(&options.class), options.features.clone());
    }
}

/// The file with the node's features of the installation with `class`. Each has its own: they say
/// which version of husk it is.
pub(super) fn features(class: &str) -> PathBuf {
    Path::new(FEATURES).join(format!("husk-{class}"))
}

/// A `RuntimeClass` (node.k8s.io/v1) for each handler.
fn classes(options: &Options, handlers: &[Handler]) -> String {
    let overhead = match &options.overhead {
        Some(overhead) => overhead.clone(),
        None => Overhead::of_kata(),
    };
    let mut text = String::new();
    for handler in handlers {
        let separator = if text.is_empty() { "" } else { "---\n" };
        let _ = write!(
            text,
            "{separator}apiVersion: node.k8s.io/v1\n\
             kind: RuntimeClass\n\
             metadata:\n  name: {name}\n\
             handler: {name}\n\
             # {method}\n\
             overhead:\n  podFixed:\n    memory: \"{memory}Mi\"\n    cpu: \"{cpu}m\"\n\
             scheduling:\n  nodeSelector:\n    {LABEL}: \"true\"\n",
            name = handler.name,
            method = overhead.method,
            memory = overhead.memory_mib,
            cpu = overhead.cpu_millis,
        );
    }
    text
}

/// A `NodeFeatureRule` (nfd.k8s-sigs.io/v1alpha1): the label for nodes on which husk's own feature
/// file is missing, from what node feature discovery sees by itself. Whether the module is loaded
/// or built in, `kernel.enabledmodule` has it.
fn rule(options: &Options) -> String {
    let mut any = String::new();
    for (flag, module) in [("VMX", "kvm_intel"), ("SVM", "kvm_amd")] {
        let _ = write!(
            any,
            "        - matchFeatures:\n\
             \x20           - feature: cpu.cpuid\n\
             \x20             matchExpressions:\n\
             \x20               {flag}: {{op: Exists}}\n\
             \x20           - feature: kernel.enabledmodule\n\
             \x20             matchExpressions:\n\
             \x20               {module}: {{op: Exists}}\n"
        );
    }
    format!(
        "apiVersion: nfd.k8s-sigs.io/v1alpha1\n\
         kind: NodeFeatureRule\n\
         metadata:\n  name: {class}\n\
         spec:\n  rules:\n\
         \x20   - name: {class}\n\
         \x20     labels:\n        {LABEL}: \"true\"\n\
         \x20     matchAny:\n{any}",
        class = options.class
    )
}

#[cfg(test)]
#[path = "kubernetes_test.rs"]
mod tests;
