"""Parameters and multiply-adds by the papers' rules, and the papers' tables."""
