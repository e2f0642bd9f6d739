"""The project that the tests have served: it writes down what happens to it."""
