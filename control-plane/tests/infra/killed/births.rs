//! A child with a server: asked for over REST, and asked for again by whoever did not hear the answer.

use serde_json::{Value, json};

use super::{At, LONG, PLAN, Scene};
use crate::fake::switches::How;
use crate::support::{Call, Server, Store, on_each_store};

on_each_store!(killed_anywhere_a_child_is_born_once_with_one_server);

async fn killed_anywhere_a_child_is_born_once_with_one_server(store: Store) {
    let mut scene = Scene::open(store).await;
    let mut points = vec![
        At::Vendor("createServer", How::Late(LONG)),
        At::Vendor("createServer", How::Half),
        At::Vendor("createServer", How::Unheard),
    ];
    points.extend(At::commit("births", "TRUE"));
    for when in ["NEW.status = 'executing'", "NEW.status = 'delivered'"] {
        points.extend(At::commit("purchases", when));
    }
    for (n, at) in scene.points(&points).into_iter().enumerate() {
        let parent = scene.town.agent(&format!("parent-{n}"), 100).await;
        let host = format!("nursery-{n}");
        let ask = |server: &Server| -> Call {
            let order = json!({"plan": PLAN, "region": "LT-Siauliai", "image": "debian_12_64bit",
                "hostname": host, "cycle": "hourly"});
            let body = json!({"name": format!("child-{n}"), "budget": 20, "server": order});
            let path = format!("/api/agents/{}/children", parent.id);
            server.as_operator("POST", &path).once("birth").json(body)
        };
        let mut asking = None;
        scene
            .killed_asked(at, async |server: &Server| asking = Some(tokio::spawn(ask(server).attempt())))
            .await;
        let _no_answer_or_one = asking.expect("it was asked").await;
        scene.live(15).await;
        // Whoever did not hear asks again, of a program that knows nothing but the database.
        scene.server.crash().await;
        let born = ask(&scene.server).await.ok(201);
        let again = ask(&scene.server).await.ok(201);
        assert_eq!(born["agent"]["id"], again["agent"]["id"], "{at:?}");
        assert_eq!((&again["enrolmentToken"], &again["secretShown"]), (&Value::Null, &json!(true)), "{at:?}");
        scene.server.kill();
        scene.expire_leases().await;
        scene.live(15).await;
        let made = scene
            .fake
            .with(|world| world.cherry.machines.values().filter(|machine| machine.hostname == host).count());
        assert_eq!(made, 1, "{at:?}");
        let shown = scene.town.look(parent.id).await;
        // 20 for the child, and 0.015 for each of 24 hours with 21 %.
        assert_eq!((shown.credits.to_string().as_str(), shown.children_count), ("79.5644", 1), "{at:?}");
        scene.checked().await;
    }
}
