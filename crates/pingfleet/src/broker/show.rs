//! `broker show`: what the broker has of a fleet, and what is not as it should be.

use std::io;

use pingfleet_settings::{Exit, Failure, printed};
use serde_json::{Value, json};

use super::{
    Administrator,
    found::{self, Found},
};
use crate::report::{
    layout::{self, Block, Line, Screen, columns, wrapped},
    write_json,
};

pub(super) fn show(is_json: bool, administrator: &Administrator) -> Result<Exit, Failure> {
    administrator.require_management()?;
    let Administrator {
        broker,
        management,
        prefix,
        ..
    } = administrator;
    let found = found::find(management, broker, prefix)?;
    let problems = problems(&found, administrator);
    if is_json {
        let fields = fields(&found, &problems, &management.vhost);
        printed(write_json(&mut io::stdout(), fields))?;
    } else {
        let place = broker.place();
        layout::print(&blocks(&found, &problems, &place, Screen::of_stdout()))?;
    }
    Ok(Exit::Complete)
}

/// What is not as it should be, a sentence each.
fn problems(found: &Found, administrator: &Administrator) -> Vec<String> {
    let mut problems = Vec::new();
    if !found.has_vhost {
        problems.push(format!(
            "There is no virtual host {}.",
            administrator.management.vhost
        ));
    }
    problems.extend(
        found
            .missing
            .iter()
            .map(|what| format!("There is no {what}.")),
    );
    problems.extend(found.alien.iter().map(|binding| {
        format!(
            "Exchange {:?} is bound to {} {:?} with routing key {:?}: no program of the fleet did that, and messages may be \
             read or forged by it.",
            binding.source, binding.destination_type, binding.destination, binding.routing_key
        )
    }));
    let policies = found.policies.iter();
    problems.extend(policies.map(|(name, _)| format!("Policy {name} is missing or another one.")));
    for login in &found.logins {
        let of_login = login.problems(&administrator.broker).into_iter();
        problems.extend(of_login.map(|problem| format!("User {} {problem}.", login.name)));
    }
    problems
}

fn blocks(found: &Found, problems: &[String], place: &str, screen: Screen) -> Vec<Block> {
    let head = format!("RabbitMQ {} on {place}", found.version);
    let mut blocks = vec![wrapped(&head, 2, screen.width)];
    if !problems.is_empty() {
        let problems = problems.iter();
        let mut block: Block = problems
            .flat_map(|problem| wrapped(problem, 2, screen.width))
            .collect();
        block.extend(wrapped(
            "To remedy all of it: pingfleet broker init",
            2,
            screen.width,
        ));
        blocks.push(block);
    }
    let queues = found
        .queues
        .iter()
        .filter_map(|(name, queue)| Some((name, queue.as_ref()?)));
    let queues: Vec<_> = queues
        .map(|(name, queue)| {
            vec![
                name.clone(),
                queue.messages_ready.to_string(),
                queue.messages_unacknowledged.to_string(),
                queue.consumers.to_string(),
            ]
        })
        .collect();
    if !queues.is_empty() {
        blocks.push(columns(
            &["QUEUE", "READY", "IN HAND", "CONSUMERS"],
            &[false, true, true, true],
            &queues,
        ));
    }
    let logins = found.logins.iter().filter(|login| login.user.is_some());
    let logins: Vec<_> = logins
        .map(|login| {
            vec![
                login.name.clone(),
                login.role.name().to_owned(),
                login.connections.to_string(),
            ]
        })
        .collect();
    if logins.is_empty() {
        blocks.push(vec![Line::new("There are no logins of a fleet yet.")]);
    } else {
        blocks.push(columns(
            &["LOGIN", "ROLE", "CONNECTIONS"],
            &[false, false, true],
            &logins,
        ));
    }
    blocks
}

fn fields(found: &Found, problems: &[String], vhost: &str) -> [(&'static str, Value); 5] {
    let queues = found.queues.iter().map(|(name, queue)| {
        let queue = queue.as_ref();
        json!({
            "queue": name,
            "ready": queue.map(|queue| queue.messages_ready),
            "in_hand": queue.map(|queue| queue.messages_unacknowledged),
            "consumers": queue.map(|queue| queue.consumers),
        })
    });
    let logins = found.logins.iter().map(|login| {
        json!({
            "login": login.name, "role": login.role.name(), "exists": login.user.is_some(),
            "connections": login.connections,
        })
    });
    [
        ("version", json!(found.version)),
        ("virtual_host", json!(vhost)),
        ("queues", queues.collect()),
        ("logins", logins.collect()),
        ("problems", json!(problems)),
    ]
}
