//! A guest's AML interpreter in miniature: the opcodes that this crate writes (ACPI 6.5 §20.2), and nothing else.
//!
//! With it the tests see what a guest would do, and not only which bytes it was given. What it does
//! not know makes it panic.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use acpi_tables::Aml;
use husk_devices::{BusDevice, Effect};

/// A device and where its window begins and ends.
type Window = (std::ops::Range<u64>, Arc<Mutex<dyn BusDevice>>);

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(u64),
    Bytes(Vec<u8>),
}

impl Value {
    pub fn int(&self) -> u64 {
        match self {
            Self::Int(value) => *value,
            Self::Bytes(bytes) => panic!("{bytes:x?} is not an integer"),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Int(value) => panic!("{value:#x} is not a buffer"),
        }
    }
}

#[derive(Clone, Debug)]
enum Node {
    Device,
    Value(Value),
    Region {
        address: u64,
        length: u64,
    },
    Field {
        region: String,
        /// Bits before it.
        start: u64,
        bits: u64,
        unit: u64,
    },
    QWord {
        buffer: String,
        index: usize,
    },
    Method {
        args: u8,
        body: Vec<u8>,
    },
}

/// A namespace, the buses beneath it, and what it was notified of.
#[derive(Default)]
pub struct Guest {
    nodes: BTreeMap<String, Node>,
    windows: Vec<Window>,
    /// Devices and values, in order.
    pub notified: Vec<(String, u64)>,
    /// Number of register accesses.
    pub accesses: u64,
}

struct Frame {
    scope: String,
    args: Vec<Value>,
    locals: [Value; 8],
}

impl Frame {
    fn new(scope: &str, args: Vec<Value>) -> Self {
        Self {
            scope: scope.to_owned(),
            args,
            locals: std::array::from_fn(|_| Value::Int(0)),
        }
    }
}

/// A byte of a buffer, as `Index` names it.
enum Place {
    Local(usize),
    Name(String),
}

/// A place in a stretch of AML.
struct Code<'a>(&'a [u8]);

impl<'a> Code<'a> {
    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(length);
        self.0 = tail;
        head
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    fn int(&mut self, length: usize) -> u64 {
        self.bytes(length)
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// PkgLength (§20.2.4): its value, and how many bytes it took itself.
    fn length(&mut self) -> (usize, usize) {
        let lead = usize::from(self.byte());
        match lead >> 6 {
            0 => (lead & 0x3f, 1),
            more => (
                self.bytes(more)
                    .iter()
                    .rev()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
                    << 4
                    | lead & 0xf,
                1 + more,
            ),
        }
    }

    /// The contents of a package.
    fn package(&mut self) -> Code<'a> {
        let (length, used) = self.length();
        Code(self.bytes(length - used))
    }

    /// NameString (§20.2.2), as `\A.B` or `A`.
    fn name(&mut self) -> String {
        let root = if self.0[0] == b'\\' { self.bytes(1) } else { &[] };
        let count = match self.0[0] {
            0x2e => self.bytes(1).len() * 2,
            0x2f => usize::from(self.bytes(2)[1]),
            _ => 1,
        };
        let parts: Vec<_> = (0..count)
            .map(|_| String::from_utf8(self.bytes(4).to_vec()).unwrap())
            .collect();
        format!("{}{}", String::from_utf8_lossy(root), parts.join("."))
    }
}

impl Guest {
    /// Loads a fragment of a DSDT.
    pub fn load(&mut self, aml: &dyn Aml) -> Vec<u8> {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        self.define("\\", &mut Code(&bytes));
        bytes
    }

    pub fn attach(&mut self, address: u64, length: u64, device: Arc<Mutex<dyn BusDevice>>) {
        self.windows.push((address..address + length, device));
    }

    pub fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Evaluates an object or a method, as the operating system does.
    pub fn evaluate(&mut self, path: &str, args: &[u64]) -> Value {
        self.value_of(path, args.iter().map(|arg| Value::Int(*arg)).collect())
    }

    fn value_of(&mut self, path: &str, args: Vec<Value>) -> Value {
        let node = self
            .nodes
            .get(path)
            .unwrap_or_else(|| panic!("{path} does not exist"))
            .clone();
        match node {
            Node::Value(value) => value,
            Node::Field {
                region,
                start,
                bits,
                unit,
            } => self.read(&region, start, bits, unit),
            Node::Method { args: count, body } => {
                assert_eq!(args.len(), usize::from(count), "arguments of {path}");
                self.call(path, args, &body)
            }
            node => panic!("{path} is {node:?}"),
        }
    }

    fn call(&mut self, path: &str, args: Vec<Value>, body: &[u8]) -> Value {
        let mut frame = Frame::new(path, args);
        self.run(&mut frame, &mut Code(body)).unwrap_or(Value::Int(0))
    }

    /// §5.3: a lone name is looked for here and then further up; anything else is where it says.
    fn resolve(&self, scope: &str, name: &str) -> String {
        if name.starts_with('\\') {
            return name.to_owned();
        }
        let mut scope = scope;
        loop {
            let path = join(scope, name);
            if self.nodes.contains_key(&path) {
                return path;
            }
            scope = match scope.rsplit_once('.') {
                Some((parent, _)) => parent,
                None if scope != "\\" => "\\",
                None => panic!("{name} does not exist"),
            };
        }
    }

    fn insert(&mut self, scope: &str, name: &str, node: Node) -> String {
        let path = join(scope, name);
        let old = self.nodes.insert(path.clone(), node);
        // Objects that a method creates go when it returns (§5.5.2.3); here the next call replaces them.
        assert!(
            old.is_none() || matches!(old, Some(Node::Value(_) | Node::QWord { .. })),
            "{path} defined twice"
        );
        path
    }

    fn define(&mut self, scope: &str, code: &mut Code) {
        while !code.0.is_empty() {
            match code.byte() {
                0x5b => self.define_extended(scope, code),
                0x08 => self.define_name(scope, code),
                0x10 => {
                    let mut body = code.package();
                    let path = self.resolve(scope, &body.name());
                    assert!(matches!(self.nodes[&path], Node::Device), "{path} is no device");
                    self.define(&path, &mut body);
                }
                0x14 => {
                    let mut body = code.package();
                    let name = body.name();
                    let args = body.byte() & 7;
                    self.insert(
                        scope,
                        &name,
                        Node::Method {
                            args,
                            body: body.0.to_vec(),
                        },
                    );
                }
                opcode => panic!("opcode {opcode:#x} at load"),
            }
        }
    }

    fn define_extended(&mut self, scope: &str, code: &mut Code) {
        let mut frame = Frame::new(scope, Vec::new());
        match code.byte() {
            0x82 => {
                let mut body = code.package();
                let path = body.name();
                let path = self.insert(scope, &path, Node::Device);
                self.define(&path, &mut body);
            }
            0x80 => {
                let name = code.name();
                assert_eq!(code.byte(), 0, "SystemMemory");
                let (address, length) = (self.term(&mut frame, code).int(), self.term(&mut frame, code).int());
                self.insert(scope, &name, Node::Region { address, length });
            }
            0x81 => {
                let mut body = code.package();
                let region = self.resolve(scope, &body.name());
                let unit = match body.byte() & 0xf {
                    3 => 4,
                    4 => 8,
                    access => panic!("access type {access}"),
                };
                let mut offset = 0;
                while !body.0.is_empty() {
                    let name = if body.0[0] == 0 { body.bytes(1) } else { body.bytes(4) };
                    let bits = body.length().0 as u64;
                    if let [_, _, _, _] = name {
                        let node = Node::Field {
                            region: region.clone(),
                            start: offset,
                            bits,
                            unit,
                        };
                        self.insert(scope, std::str::from_utf8(name).unwrap(), node);
                    }
                    offset += bits;
                }
            }
            opcode => panic!("opcode 0x5b {opcode:#x} at load"),
        }
    }

    fn define_name(&mut self, scope: &str, code: &mut Code) {
        let name = code.name();
        let mut frame = Frame::new(scope, Vec::new());
        let value = self.term(&mut frame, code);
        self.insert(scope, &name, Node::Value(value));
    }

    /// Runs statements until the end or a `Return`.
    fn run(&mut self, frame: &mut Frame, code: &mut Code) -> Option<Value> {
        while !code.0.is_empty() {
            match code.0[0] {
                0xa4 => {
                    code.byte();
                    return Some(self.term(frame, code));
                }
                0xa0 => {
                    code.byte();
                    let mut then = code.package();
                    let taken = self.term(frame, &mut then).int() != 0;
                    let mut otherwise = Code(&[]);
                    if code.0.first() == Some(&0xa1) {
                        code.byte();
                        otherwise = code.package();
                    }
                    let returned = self.run(frame, if taken { &mut then } else { &mut otherwise });
                    if returned.is_some() {
                        return returned;
                    }
                }
                0xa2 => {
                    code.byte();
                    let whole = code.package().0;
                    for round in 0.. {
                        assert!(round < 10_000, "endless loop");
                        let mut body = Code(whole);
                        if self.term(frame, &mut body).int() == 0 {
                            break;
                        }
                        let returned = self.run(frame, &mut body);
                        if returned.is_some() {
                            return returned;
                        }
                    }
                }
                0x08 => {
                    code.byte();
                    self.define_name(&frame.scope.clone(), code);
                }
                _ => drop(self.term(frame, code)),
            }
        }
        None
    }

    /// Evaluates one term, a statement or an expression.
    fn term(&mut self, frame: &mut Frame, code: &mut Code) -> Value {
        let opcode = code.0[0];
        if matches!(opcode, b'\\' | b'_' | b'A'..=b'Z' | 0x2e | 0x2f) {
            let path = self.resolve(&frame.scope, &code.name());
            return self.load_name(frame, code, &path);
        }
        code.byte();
        match opcode {
            0x00 => Value::Int(0),
            0x01 => Value::Int(1),
            0x0a..=0x0c => Value::Int(code.int(1 << (opcode - 0x0a))),
            0x0e => Value::Int(code.int(8)),
            0x0d => {
                let length = code.0.iter().position(|byte| *byte == 0).unwrap();
                Value::Bytes(code.bytes(length + 1).to_vec())
            }
            0x11 => {
                let mut body = code.package();
                let length = self.term(frame, &mut body).int() as usize;
                let mut bytes = body.0.to_vec();
                bytes.resize(length, 0);
                Value::Bytes(bytes)
            }
            0x60..=0x67 => frame.locals[usize::from(opcode - 0x60)].clone(),
            0x68..=0x6e => frame.args[usize::from(opcode - 0x68)].clone(),
            0x70 => {
                let value = self.term(frame, code);
                self.assign(frame, code, value)
            }
            0x72 | 0x74 | 0x77 | 0x79..=0x7b | 0x7d => {
                let (a, b) = (self.term(frame, code).int(), self.term(frame, code).int());
                let value = match opcode {
                    0x72 => a.wrapping_add(b),
                    0x74 => a.wrapping_sub(b),
                    0x77 => a.wrapping_mul(b),
                    0x79 => a << b,
                    0x7a => a >> b,
                    0x7b => a & b,
                    _ => a | b,
                };
                self.assign(frame, code, Value::Int(value))
            }
            0x83 => {
                assert_eq!(code.byte(), 0x88, "only a byte of a buffer is dereferenced");
                let (place, index) = self.index(frame, code);
                let byte = match place {
                    Place::Local(local) => frame.locals[local].bytes()[index],
                    Place::Name(path) => match &self.nodes[&path] {
                        Node::Value(value) => value.bytes()[index],
                        node => panic!("{path} is {node:?}"),
                    },
                };
                Value::Int(byte.into())
            }
            0x86 => {
                let device = self.resolve(&frame.scope, &code.name());
                assert!(matches!(self.nodes[&device], Node::Device), "{device} is not a device");
                let value = self.term(frame, code).int();
                self.notified.push((device, value));
                Value::Int(0)
            }
            0x8f => {
                let buffer = self.resolve(&frame.scope, &code.name());
                let index = self.term(frame, code).int() as usize;
                let name = code.name();
                self.insert(&frame.scope.clone(), &name, Node::QWord { buffer, index });
                Value::Int(0)
            }
            0x93 => {
                let (a, b) = (self.term(frame, code).int(), self.term(frame, code).int());
                Value::Int(if a == b { u64::MAX } else { 0 })
            }
            0x95 => {
                let (a, b) = (self.term(frame, code).int(), self.term(frame, code).int());
                Value::Int(if a < b { u64::MAX } else { 0 })
            }
            opcode => panic!("opcode {opcode:#x}"),
        }
    }

    fn load_name(&mut self, frame: &mut Frame, code: &mut Code, path: &str) -> Value {
        let count = match self.nodes.get(path) {
            Some(Node::Method { args, .. }) => *args,
            _ => 0,
        };
        let args = (0..count).map(|_| self.term(frame, code)).collect();
        self.value_of(path, args)
    }

    /// Stores to the target that comes next.
    fn assign(&mut self, frame: &mut Frame, code: &mut Code, value: Value) -> Value {
        match code.0[0] {
            0x00 => drop(code.byte()),
            local @ 0x60..=0x67 => {
                code.byte();
                frame.locals[usize::from(local - 0x60)] = value.clone();
            }
            0x88 => {
                code.byte();
                let (place, index) = self.index(frame, code);
                let byte = value.int() as u8;
                match place {
                    Place::Local(local) => match &mut frame.locals[local] {
                        Value::Bytes(bytes) => bytes[index] = byte,
                        Value::Int(_) => panic!("Local{local} is not a buffer"),
                    },
                    Place::Name(path) => panic!("store into {path}"),
                }
            }
            _ => {
                let path = self.resolve(&frame.scope, &code.name());
                match self.nodes[&path].clone() {
                    Node::Field {
                        region,
                        start,
                        bits,
                        unit,
                    } => {
                        assert_eq!(bits, unit * 8, "a whole register is written");
                        self.write(&region, start / 8, value.int(), unit);
                    }
                    Node::Value(Value::Bytes(old)) => {
                        assert_eq!(old.len(), value.bytes().len(), "{path} keeps its length");
                        self.nodes.insert(path, Node::Value(value.clone()));
                    }
                    Node::Value(Value::Int(_)) => {
                        self.nodes.insert(path, Node::Value(Value::Int(value.int())));
                    }
                    Node::QWord { buffer, index } => {
                        let Some(Node::Value(Value::Bytes(bytes))) = self.nodes.get_mut(&buffer) else {
                            panic!("{buffer}")
                        };
                        bytes[index..index + 8].copy_from_slice(&value.int().to_le_bytes());
                    }
                    node => panic!("store to {path}, {node:?}"),
                }
            }
        }
        value
    }

    /// The operands of `Index` (§19.6.63), whose target nobody needs.
    fn index(&mut self, frame: &mut Frame, code: &mut Code) -> (Place, usize) {
        let place = match code.0[0] {
            local @ 0x60..=0x67 => {
                code.byte();
                Place::Local(usize::from(local - 0x60))
            }
            _ => Place::Name(self.resolve(&frame.scope, &code.name())),
        };
        let index = self.term(frame, code).int() as usize;
        assert_eq!(code.byte(), 0, "no target");
        (place, index)
    }

    fn device(&mut self, region: &str, offset: u64, unit: u64) -> (u64, Arc<Mutex<dyn BusDevice>>) {
        let Node::Region { address, length } = self.nodes[region] else {
            panic!("{region} is no region")
        };
        assert!(offset + unit <= length, "access beyond the end of {region}");
        assert_eq!(offset % unit, 0, "unaligned access");
        self.accesses += 1;
        let at = address + offset;
        let (window, device) = self
            .windows
            .iter()
            .find(|(window, _)| window.contains(&at))
            .expect("a device");
        (at - window.start, Arc::clone(device))
    }

    /// §19.6.47: a part of one register, or a whole one.
    fn read(&mut self, region: &str, start: u64, bits: u64, unit: u64) -> Value {
        let width = unit * 8;
        let (register, low) = (start / width * unit, start % width);
        assert!(low + bits <= width, "in one register");
        let (at, device) = self.device(region, register, unit);
        let mut data = [0; 8];
        device.lock().unwrap().read(at, &mut data[..unit as usize]);
        Value::Int(u64::from_le_bytes(data) >> low & u64::MAX >> (64 - bits))
    }

    fn write(&mut self, region: &str, offset: u64, value: u64, unit: u64) {
        let (offset, device) = self.device(region, offset, unit);
        let data = &value.to_le_bytes()[..unit as usize];
        assert_eq!(device.lock().unwrap().write(offset, data), Effect::None);
    }
}

fn join(scope: &str, name: &str) -> String {
    match (name.starts_with('\\'), scope) {
        (true, _) => name.to_owned(),
        (false, "\\") => format!("\\{name}"),
        (false, _) => format!("{scope}.{name}"),
    }
}
