"""The benchmark command: time and memory of networks in several forms and runtimes."""
