//! Compiles the seccomp filters, so that no start of husk has to.

#[path = "src/seccomp/policy.rs"]
mod policy;
#[path = "src/seccomp/program.rs"]
mod program;
#[path = "src/seccomp/requests.rs"]
mod requests;
#[path = "src/seccomp/roles.rs"]
mod roles;
#[path = "src/seccomp/tables.rs"]
mod tables;

use std::fmt::Write;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=src/seccomp");
    println!("cargo::rerun-if-changed=build.rs");
    let mut text = format!("static FILTERS: [&[Instruction]; {}] = [\n", tables::ROLES.len());
    for role in tables::ROLES {
        let program = program::compile(&tables::policy(role, roles::ANY_PID), roles::DENIED);
        let _ = writeln!(text, "    // {role:?}\n    &[");
        for instruction in program {
            let (code, jt, jf, k) = (instruction.code, instruction.jt, instruction.jf, instruction.k);
            let _ = writeln!(text, "        ({code:#x}, {jt}, {jf}, {k:#x}),");
        }
        text.push_str("    ],\n");
    }
    text.push_str("];\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo says where to");
    std::fs::write(Path::new(&out).join("filters.rs"), text).expect("cargo has made the folder");
}
