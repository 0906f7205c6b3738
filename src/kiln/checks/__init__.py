"""What every image promises, as Testinfra checks; expectations come from the tables, never from a literal here."""
