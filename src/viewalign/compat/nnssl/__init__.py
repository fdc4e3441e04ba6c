"""nnssl's commands, folders, plans and stores."""
