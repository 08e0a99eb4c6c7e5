//! The rights of the program `dead`.

use super::*;
use crate::dead::{REASON, bury, dead, output};

#[test]
fn operator_with_the_documented_rights_replays_and_is_told_which_is_missing_before_the_first_claim() {
    let scene = Scene::new("rights-dead");
    for right in Right::needed().filter(|right| right.who == ToOperator).map(Some).chain([None]) {
        let rig = scene.granted("dead", right);
        bury(&rig, &["a"], &[REASON]);
        let mut program = scene.by(ToOperator, dead(&rig, &["replay", "a"])).start();
        let (code, said) = (program.wait(START).code, output(&program));
        let Some(right) = right else {
            assert!(code == Some(0) && said.starts_with("a: replayed"), "{said}");
            continue;
        };
        let name = format!("topic \"{}\"", right.name(&rig));
        assert!(code == Some(1) && said.contains(&name) && said.contains("is missing"), "{right:?}: {said}");
        assert_eq!(rig.dead_letters().len(), 1, "{right:?}: nothing was claimed");
    }
}
