use proptest::prelude::*;

use super::*;

const EVENTS: [Event; 13] = [
    Event::Boot,
    Event::Offer,
    Event::Ask,
    Event::Reclaim,
    Event::Expire,
    Event::Destroyed,
    Event::Take,
    Event::Reported,
    Event::Inserted,
    Event::InsertRefused { ost: 0x81 },
    Event::InsertUnproven,
    Event::EjectRefused { ost: 0x82 },
    Event::Eject,
];

/// State in short: first letter, `+` seen, `*` wanted, `?` unconfirmed.
fn short(state: State) -> String {
    let mark = |on, mark| if on { mark } else { "" };
    match state {
        State::Empty => "-".to_owned(),
        State::Offered { seen } => format!("O{}", mark(seen, "+")),
        State::Reported { seen } => format!("R{}", mark(seen, "+")),
        State::Present => "P".to_owned(),
        State::Asked {
            seen,
            wanted,
            confirmed,
        } => {
            format!("A{}{}{}", mark(seen, "+"), mark(wanted, "*"), mark(!confirmed, "?"))
        }
        State::Ejected { wanted } => format!("E{}", mark(wanted, "*")),
    }
}

/// A step in short: the state, then `a` or `r` and an outcome for each request answered, or `.` if not allowed.
fn outcome(state: State, event: Event) -> String {
    let Ok(step) = state.step(event) else {
        return ".".to_owned();
    };
    let kept = |who: &str, outcome: Option<Outcome>| match outcome {
        None => String::new(),
        Some(Outcome::Accepted) => format!(" {who}=ok"),
        Some(Outcome::Refused { ost }) => format!(" {who}={ost:x}"),
        Some(Outcome::Unproven) => format!(" {who}=lie"),
        Some(Outcome::TimedOut) => format!(" {who}=late"),
        Some(Outcome::Withdrawn) => format!(" {who}=off"),
    };
    format!("{}{}{}", short(step.state), kept("a", step.add), kept("r", step.remove))
}

fn every_state() -> Vec<State> {
    let mut states = vec![
        State::Empty,
        State::Offered { seen: false },
        State::Offered { seen: true },
        State::Reported { seen: false },
        State::Reported { seen: true },
        State::Present,
    ];
    for confirmed in [false, true] {
        for (seen, wanted) in [(false, false), (true, false), (true, true)] {
            states.push(State::Asked {
                seen,
                wanted,
                confirmed,
            });
        }
    }
    states.extend([false, true].map(|wanted| State::Ejected { wanted }));
    states
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    #[rustfmt::skip]
    let table: [(&str, [&str; 13]); 14] = [
        //        boot offer ask            reclaim        expire       destr take   report inserted  ins. refused  unproven  eject refused eject
        ("-",    ["P", "O",  ".",           ".",           "-",         ".",  ".",   ".",   ".",      ".",          ".",      ".",          "."]),
        ("O",    [".", ".",  "E a=off r=off","O",          "E a=late",  ".",  "O+",  ".",   ".",      ".",          ".",      ".",          "."]),
        ("O+",   [".", ".",  "A? a=off",    "O+",          "O+",        ".",  ".",   "R",   "P a=ok", "E a=81",     "E a=lie",".",          "."]),
        ("R",    [".", ".",  "A? a=off",    "R",           "R",         ".",  "R+",  ".",   ".",      ".",          ".",      ".",          "."]),
        ("R+",   [".", ".",  "A? a=off",    "R+",          "R+",        ".",  ".",   "R",   "P a=ok", "E a=81",     "E a=lie",".",          "."]),
        ("P",    [".", ".",  "A",           "P a=off",     "P",         ".",  ".",   ".",   ".",      ".",          ".",      ".",          "."]),
        ("A?",   [".", ".",  "A?",          "O+ r=off",    "O+ r=late", ".",  "A+?", ".",   "A",      "E r=ok",     "E r=ok", ".",          "E r=ok"]),
        ("A+?",  [".", ".",  "A+?",         "A+*? r=off",  "A+?",       ".",  ".",   ".",   "A+",     "E r=ok",     "E r=ok", "O+ r=82",    "E r=ok"]),
        ("A+*?", [".", ".",  "A+? a=off",   "A+*?",        "A+? a=late",".",  ".",   ".",   "A+*",    "E*",         "E*",     "O+",         "E*"]),
        ("A",    [".", ".",  "A",           "P a=off r=off","P r=late",  ".",  "A+",  ".",   ".",      ".",          ".",      ".",          "E r=ok"]),
        ("A+",   [".", ".",  "A+",          "A+* r=off",   "A+",        ".",  ".",   ".",   ".",      ".",          ".",      "P r=82",     "E r=ok"]),
        ("A+*",  [".", ".",  "A+ a=off",    "A+*",         "A+ a=late", ".",  ".",   ".",   ".",      ".",          ".",      "P a=off",    "E*"]),
        ("E",    [".", ".",  "E r=ok",      "E*",          "E",         "-",  ".",   ".",   ".",      ".",          ".",      ".",          "."]),
        ("E*",   [".", ".",  "E a=off r=ok","E*",          "E a=late",  "O",  ".",   ".",   ".",      ".",          ".",      ".",          "."]),
    ];
    let states = every_state();
    assert_eq!(states.len(), table.len());
    for (state, (name, row)) in states.into_iter().zip(table) {
        assert_eq!(short(state), name);
        for (event, expected) in EVENTS.into_iter().zip(row) {
            assert_eq!(outcome(state, event), expected, "{event:?} in {state:?}");
        }
    }
}

#[test]
fn ost_reports_mean_what_the_specification_says() {
    let refused = |ost| Some(Event::InsertRefused { ost });
    for (source_event, status, expected) in [
        (0, 0, Some(Event::Inserted)),
        (1, 0, Some(Event::Inserted)),
        (0x200, 0, Some(Event::Inserted)),
        (1, 1, refused(1)),
        (1, 2, refused(2)),
        (1, 0x80, None),
        (1, 0x81, refused(0x81)),
        (1, 0x84, refused(0x84)),
        (3, 0, None),
        (0x103, 0, None),
        (3, 0x84, None),
        (3, 0x80, Some(Event::EjectRefused { ost: 0x80 })),
        (0x103, 0x82, Some(Event::EjectRefused { ost: 0x82 })),
        (2, 0, None),
        (0x100, 0, None),
        (u32::MAX, u32::MAX, None),
    ] {
        assert_eq!(
            Event::from_ost(source_event, status),
            expected,
            "_OST({source_event:#x}, {status:#x})"
        );
    }
}

#[test]
fn only_an_unseen_offer_hides_from_sta() {
    let shown: Vec<String> = every_state()
        .into_iter()
        .filter(|state| state.enabled())
        .map(short)
        .collect();
    assert_eq!(shown, ["O+", "R", "R+", "P", "A?", "A+?", "A+*?", "A", "A+", "A+*"]);
}

#[test]
fn the_scan_is_told_of_unseen_events_only() {
    let told: Vec<String> = every_state()
        .into_iter()
        .filter_map(|state| Some(format!("{}{}", short(state), state.notification()?)))
        .collect();
    assert_eq!(told, ["O1", "R1", "A?3", "A3"]);
}

#[test]
fn what_a_slot_holds_and_what_it_will_hold_are_known_of_every_state() {
    let shown = |is: fn(State) -> bool| -> Vec<String> {
        let states = every_state().into_iter().filter(|state| is(*state));
        states.map(short).collect()
    };
    assert_eq!(shown(State::plugged), ["P", "A", "A+", "A+*"]);
    assert_eq!(
        shown(State::will_be_plugged),
        ["O", "O+", "R", "R+", "P", "A+*?", "A+*", "E*"]
    );
    for state in every_state() {
        let name = match short(state).as_bytes()[0] {
            b'-' => "absent",
            b'O' | b'R' => "offered",
            b'P' => "present",
            b'A' => "asked",
            _ => "ejected",
        };
        assert_eq!(state.name(), name, "{state:?}");
    }
}

proptest! {
    /// Whoever asks for something waits only while there is something to wait for.
    #[test]
    fn no_sender_waits_in_a_slot_at_rest(choices in proptest::collection::vec(0..EVENTS.len(), 1..200)) {
        let (mut state, mut adds, mut removes) = (State::Empty, false, false);
        for choice in choices {
            let event = EVENTS[choice];
            let Ok(step) = state.step(event) else { continue };
            // As in the bank, a second sender of the same kind takes the place of the first.
            adds |= matches!(event, Event::Offer | Event::Reclaim);
            removes |= event == Event::Ask;
            adds &= step.add.is_none();
            removes &= step.remove.is_none();
            state = step.state;
            let wants = matches!(state, State::Offered { .. } | State::Reported { .. })
                || matches!(state, State::Asked { wanted: true, .. } | State::Ejected { wanted: true });
            prop_assert!(wants || !adds, "an add waits for ever in {state:?}");
            prop_assert!(matches!(state, State::Asked { wanted: false, .. }) || !removes, "a remove waits for ever in {state:?}");
            let is_legal = !matches!(state, State::Asked { seen: false, wanted: true, .. });
            prop_assert!(is_legal, "an unseen question is taken back, not superseded");
        }
    }

    /// The guest alone neither fills an empty slot nor empties one that it was not asked for.
    #[test]
    fn the_guest_alone_moves_nothing(start in 0..14_usize, choices in proptest::collection::vec(6..EVENTS.len(), 1..50)) {
        let start = every_state()[start];
        let mut state = start;
        for choice in choices {
            if let Ok(step) = state.step(EVENTS[choice]) {
                state = step.state;
            }
        }
        match start {
            State::Empty | State::Present | State::Ejected { .. } => prop_assert_eq!(state, start),
            State::Offered { .. } | State::Reported { .. } => {
                let moved = matches!(state, State::Empty | State::Asked { .. });
                prop_assert!(!moved, "from {start:?} to {state:?}");
            }
            State::Asked { .. } => prop_assert_ne!(state, State::Empty),
        }
    }
}
