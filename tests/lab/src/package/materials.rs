//! The bill of materials: every crate that the program is made of, by cargo-cyclonedx.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Making, TARGET, tool};
use crate::command::{command, output};
use crate::progress;

/// What cargo-cyclonedx is told to call its files.
const STEM: &str = "husk-materials";

/// Makes it, also beside the program; its file's name.
pub(super) fn make(making: &Making<'_>) -> Result<String> {
    let tool = tool(making.lab, "cargo-cyclonedx")?;
    let name = format!("husk-{}.cdx.json", making.version);
    let mut cyclonedx = command(tool);
    cyclonedx
        .args([
            "cyclonedx",
            "--quiet",
            "--format",
            "json",
            "--spec-version",
            "1.5",
            "--target",
            TARGET,
        ])
        .args(["--no-build-deps", "--override-filename", STEM, "--manifest-path"])
        .arg(making.source.join("vmm/Cargo.toml"))
        .current_dir(&making.source)
        .env("SOURCE_DATE_EPOCH", making.epoch.to_string());
    let wrote = progress::step(&format!("writing {name}"), || output(&mut cyclonedx).map(drop));
    let mut text = None;
    // It writes one for each package of the workspace, beside its manifest.
    for folder in fs::read_dir(&making.source)?.flatten() {
        let mut places = vec![folder.path()];
        places.extend(["fuzz", "guest", "lab"].map(|below| folder.path().join(below)));
        for place in places.into_iter().filter(|place| place.is_dir()) {
            let file = place.join(format!("{STEM}.json"));
            if file.exists() {
                let found = fs::read_to_string(&file)?;
                fs::remove_file(&file)?;
                if place.ends_with("vmm") {
                    text = Some(found);
                }
            }
        }
    }
    wrote?;
    let text = text.context("cargo-cyclonedx wrote nothing for husk")?;
    // Packages of the workspace are named by where they are.
    let text = text.replace(&making.source.display().to_string(), "/husk");
    let text = text.replace(&making.source.display().to_string().replace(' ', "%20"), "/husk");
    let value: Value = serde_json::from_str(&text).context("cargo-cyclonedx wrote no JSON")?;
    check(&value)?;
    for path in [making.out.join(&name), making.release().join("husk.cdx.json")] {
        fs::write(path, &text)?;
    }
    Ok(name)
}

/// Whether it is a bill of husk's materials: a crate that is surely in it, with version and licence.
fn check(bill: &Value) -> Result<()> {
    ensure!(bill["bomFormat"] == "CycloneDX", "it is no bill of CycloneDX's");
    ensure!(bill["metadata"]["component"]["name"] == "husk", "it is not husk's");
    let components = bill["components"].as_array().context("it has no components")?;
    let kvm = components.iter().find(|component| component["name"] == "kvm-ioctls");
    let kvm = kvm.context("kvm-ioctls is not in it")?;
    ensure!(
        kvm["version"].is_string() && kvm["licenses"].is_array() && kvm["purl"].is_string(),
        "kvm-ioctls has no version or licence: {kvm}"
    );
    ensure!(
        components.iter().all(|component| component["name"] != "proptest"),
        "what only tests use is in it"
    );
    Ok(())
}
