"""What checks the files that a deployment is made of, with the engines that will read them."""
