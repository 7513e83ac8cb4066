"""What runs around the ranker: dashboards, rules, proxy, manifests, and the rehearsal that proves them."""
