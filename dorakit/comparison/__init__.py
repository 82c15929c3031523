"""`dorakit compare`: one recipe, varied along named axes and in nothing else, and what can be told apart."""
