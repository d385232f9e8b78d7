"""Let strangers judge: studies, from the link that they come by to what they are paid."""
