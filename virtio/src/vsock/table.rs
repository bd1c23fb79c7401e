//! All connections, by token and by name.

use std::collections::HashMap;

use super::connection::Connection;

/// What tells streams apart: there is one guest and one host, so the two ports do (virtio 1.2 §5.10.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Name {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

/// A connection's place in the table. One that has ended never means another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    fn new(slot: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | (slot as u64 & u64::from(u32::MAX)))
    }

    /// The token of a number from [`Token::number`].
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// For use with epoll.
    pub fn number(self) -> u64 {
        self.0
    }

    fn slot(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).expect("usize has 64 bits")
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// The connections of one device.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    names: HashMap<Name, Token>,
}

impl Table {
    /// Number of connections.
    pub fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Adds one, which has no name yet.
    pub fn insert(&mut self, connection: Connection) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len().saturating_sub(1)
        });
        let place = self.slots.get_mut(slot).expect("free slots exist");
        place.connection = Some(Box::new(connection));
        Token::new(slot, place.generation)
    }

    /// Gives one its name. `false` if that is taken.
    pub fn name(&mut self, token: Token, name: Name) -> bool {
        if self.names.contains_key(&name) {
            return false;
        }
        let Some(connection) = self.get_mut(token) else {
            return false;
        };
        connection.name = name;
        self.names.insert(name, token);
        true
    }

    /// Takes one's name away: packets of that name are strangers from now on.
    pub fn forget_name(&mut self, token: Token) {
        if let Some(connection) = self.get_mut(token) {
            let name = connection.name;
            if self.names.get(&name) == Some(&token) {
                self.names.remove(&name);
            }
        }
    }

    /// The connection of that name.
    pub fn find(&self, name: Name) -> Option<Token> {
        self.names.get(&name).copied()
    }

    /// A connection that has not ended.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(token.slot())?;
        let current = Token::new(token.slot(), slot.generation) == token;
        slot.connection.as_deref_mut().filter(|_| current)
    }

    /// Takes a connection out.
    pub fn remove(&mut self, token: Token) -> Option<Box<Connection>> {
        self.forget_name(token);
        self.get_mut(token)?;
        let slot = self.slots.get_mut(token.slot())?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.slot());
        slot.connection.take()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::vsock::buf_alloc::BufAllocPool;

    fn connection() -> Connection {
        Connection::new(UnixStream::pair().unwrap().0.into(), BufAllocPool::new())
    }

    #[test]
    fn token_of_an_ended_connection_means_no_other() {
        let mut table = Table::default();
        let first = table.insert(connection());
        assert!(table.remove(first).is_some());
        let second = table.insert(connection());
        assert_eq!(first.slot(), second.slot());
        assert!(table.get_mut(first).is_none() && table.remove(first).is_none());
        assert!(table.get_mut(second).is_some());
        assert_eq!(table.len(), 1);
        assert!(table.get_mut(Token::from_number(u64::MAX)).is_none());
    }

    #[test]
    fn names_are_unique_and_go_with_their_connection() {
        let mut table = Table::default();
        let (one, two) = (table.insert(connection()), table.insert(connection()));
        let name = Name { host: 1, guest: 2 };
        assert!(table.name(one, name));
        assert!(!table.name(two, name));
        assert_eq!(table.find(name), Some(one));
        table.remove(two);
        assert_eq!(table.find(name), Some(one));
        table.remove(one);
        assert_eq!((table.find(name), table.len()), (None, 0));
        assert!(!table.name(one, name), "it has ended");
    }
}
