"""What a run will take: memory, disk and time, from shapes alone (begin with `needs`)."""
