"""The playground: a small world of drawings with questions and answers, made when they are needed."""
