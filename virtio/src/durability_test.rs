use super::*;

#[test]
fn the_first_error_stands() {
    let durability = Durability::new("a file");
    assert!(!durability.is_lost());
    durability.lose(&io::Error::from_raw_os_error(libc::EIO));
    assert!(durability.is_lost());
    durability.lose(&io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(durability.is_lost());
}
