//! What happens on the host to shares that are in use.

use std::fs;

use crate::served::{SERVERS, Served};
use crate::{Mounted, sh};

/// Who unmounts it on the host takes it from nobody who has it: what is below is served until the guest lets go of it.
#[test]
fn a_file_system_that_is_unmounted_is_served_on_and_what_was_below_comes_to_light() {
    let mut mounts = Vec::new();
    let (served, mut agent) = Served::start_with("6.12", 1, |folder| {
        // Both the folder itself, and one in it.
        mounts.push(Mounted::new(&["-t", "tmpfs", "tmpfs"], folder));
        fs::create_dir(folder.join("below")).unwrap();
        fs::write(folder.join("below/under"), "under").unwrap();
        mounts.push(Mounted::new(&["-t", "tmpfs", "tmpfs"], &folder.join("below")));
        fs::write(folder.join("below/over"), "over").unwrap();
    });
    for server in &SERVERS[..2] {
        let said = sh(
            &mut agent,
            &format!("cd /{server}; echo kept > kept; cat below/over; ls below"),
        );
        assert_eq!(said, "overover\n", "{server}");
    }
    // The host's view of them goes at once; a busy one cannot go but so.
    drop(mounts);
    for server in &SERVERS[..2] {
        assert_eq!(fs::read_dir(served.host(server)).unwrap().count(), 0, "{server}");
        let said = sh(&mut agent, &format!("cd /{server}; cat kept; echo new > new; cat new"));
        assert_eq!(said, "kept\nnew\n", "{server}");
    }
    served.end();
}
