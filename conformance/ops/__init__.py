"""What the kit knows of each op: its cases, their inputs, and the golden; `norms` and `block` lay it open for alteration."""
